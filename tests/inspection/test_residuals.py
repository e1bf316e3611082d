import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import WITH, WITHOUT, Built, Turning, TwoBlocks, randomise_constants
from tests.support.zoo import every, on_meta
from tl_cli.errors import UsageError
from tl_cli.inspection.residual_effects import operands
from tl_cli.inspection.residuals import find_residuals
from tl_cli.inspection.trace import trace
from tl_cli.models.zoo import registry

# Residual blocks of torchvision's models: shortcuts that are x itself, and those that are projected. From the papers'
# tables: a ResNet has one per block, projected where a stage begins (not the first of basic blocks); a mobile network one
# for each block after the first of a stage; a Transformer two per block; MaxViT five per layer, four of them of attention.
EXPECTED = {
    "alexnet": (0, 0), "convnext_base": (36, 0), "convnext_large": (36, 0), "convnext_small": (36, 0),
    "convnext_tiny": (18, 0), "densenet121": (0, 0), "densenet161": (0, 0), "densenet169": (0, 0), "densenet201": (0, 0),
    "efficientnet_b0": (9, 0), "efficientnet_b1": (16, 0), "efficientnet_b2": (16, 0), "efficientnet_b3": (19, 0),
    "efficientnet_b4": (25, 0), "efficientnet_b5": (32, 0), "efficientnet_b6": (38, 0), "efficientnet_b7": (48, 0),
    "efficientnet_v2_l": (73, 0), "efficientnet_v2_m": (51, 0), "efficientnet_v2_s": (35, 0), "googlenet": (0, 0),
    "inception_v3": (0, 0), "maxvit_t": (51, 4), "mnasnet0_5": (10, 0), "mnasnet0_75": (10, 0), "mnasnet1_0": (10, 0),
    "mnasnet1_3": (10, 0), "mobilenet_v2": (10, 0), "mobilenet_v3_large": (10, 0), "mobilenet_v3_small": (6, 0),
    "regnet_x_16gf": (18, 4), "regnet_x_1_6gf": (14, 4), "regnet_x_32gf": (19, 4), "regnet_x_3_2gf": (21, 4),
    "regnet_x_400mf": (18, 4), "regnet_x_800mf": (12, 4), "regnet_x_8gf": (19, 4), "regnet_y_128gf": (23, 4),
    "regnet_y_16gf": (14, 4), "regnet_y_1_6gf": (23, 4), "regnet_y_32gf": (16, 4), "regnet_y_3_2gf": (17, 4),
    "regnet_y_400mf": (12, 4), "regnet_y_800mf": (10, 4), "regnet_y_8gf": (13, 4), "resnet101": (29, 4),
    "resnet152": (46, 4), "resnet18": (5, 3), "resnet34": (13, 3), "resnet50": (12, 4), "resnext101_32x8d": (29, 4),
    "resnext101_64x4d": (29, 4), "resnext50_32x4d": (12, 4), "shufflenet_v2_x0_5": (0, 0), "shufflenet_v2_x1_0": (0, 0),
    "shufflenet_v2_x1_5": (0, 0), "shufflenet_v2_x2_0": (0, 0), "squeezenet1_0": (0, 0), "squeezenet1_1": (0, 0),
    "swin_b": (48, 0), "swin_s": (48, 0), "swin_t": (24, 0), "swin_v2_b": (48, 0), "swin_v2_s": (48, 0),
    "swin_v2_t": (24, 0), "vgg11": (0, 0), "vgg11_bn": (0, 0), "vgg13": (0, 0), "vgg13_bn": (0, 0), "vgg16": (0, 0),
    "vgg16_bn": (0, 0), "vgg19": (0, 0), "vgg19_bn": (0, 0), "vit_b_16": (24, 0), "vit_b_32": (24, 0),
    "vit_h_14": (64, 0), "vit_l_16": (48, 0), "vit_l_32": (48, 0), "wide_resnet101_2": (29, 4),
    "wide_resnet50_2": (12, 4),
}  # fmt: skip
# Unusual timm models with additions that might be mistaken for residuals.
EXPECTED_TIMM = {
    "ghostnet_050": (11, 5, 0),  # separable convolutions on the shortcut
    "resnetv2_18": (5, 3, 0),  # activation before the shortcut leaves
    "poolformer_s12": (24, 0, 0),  # pooling in place of attention
    "levit_128": (26, 0, 0),  # biases of attention, a second head
    "halonet26t": (4, 4, 0),  # positions that depend on the query
    "repvgg_a0": (17, 0, 0),  # 3x3 and 1x1 side by side are no shortcut, the identity beside them is
    "mobileone_s0": (35, 0, 0),
    "test_maxvit": (16, 3, 1),
    "samvit_base_patch16": (24, 0, 0),  # relative positions
    "eva02_tiny_patch14_224": (24, 0, 0),  # rotated positions
    "hiera_tiny_224": (21, 3, 0),  # pooled queries
    "vovnet39a": (0, 0, 0),
}
# Families whose sums are compared with what the plain model computes.
FAMILIES = [
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_x_400mf", "regnet_y_400mf", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5", "convnext_tiny",
    "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip


def counts(name: str) -> tuple[int, int, int]:
    classifier, example = on_meta(name)
    residuals = find_residuals(classifier.model, example, classifier.head)
    kinds = [each.shortcut for each in residuals]
    names = [each.name for each in residuals]
    assert len(set(names)) == len(names)
    return kinds.count("identity"), kinds.count("projection"), kinds.count("pooling")


def test_the_table_has_every_model_of_torchvision() -> None:
    assert sorted(EXPECTED) == registry.names("torchvision")


@pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED]
)
def test_every_residual_block_of_torchvision_is_found_and_nothing_else(name: str) -> None:
    assert counts(name) == (*EXPECTED[name], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(4, EXPECTED_TIMM))
def test_residuals_of_timm_models_are_found_and_nothing_else(name: str) -> None:
    assert counts(f"timm/{name}") == EXPECTED_TIMM[name]


@pytest.mark.slow
def test_additions_of_maxvit_and_vit_that_are_not_residuals_are_left_out() -> None:
    for name, additions in (("maxvit_t", 77), ("vit_b_16", 25)):
        classifier, example = on_meta(name)
        steps = trace(classifier.model, example)
        assert sum(step.addition is not None for step in steps) == additions
        assert len(find_residuals(classifier.model, example, classifier.head)) == sum(EXPECTED[name]) < additions


@pytest.mark.parametrize("name", WITHOUT)
def test_other_additions_are_not_residuals(name: str) -> None:
    net = Built(WITHOUT[name]).eval()
    assert find_residuals(net, torch.randn(2, 3, 8, 8), ("head",)) == []


@pytest.mark.parametrize("name", WITH)
def test_a_residual_is_found_however_it_is_written(name: str) -> None:
    function, expected = WITH[name]
    residuals = find_residuals(Built(function).eval(), torch.randn(2, 3, 8, 8), ("head",))
    assert [(each.shortcut, each.x_first) for each in residuals] == expected


def test_the_sum_of_two_heads_is_not_a_residual() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.more = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.head, self.early = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images)
            return self.head(self.more(self.more(x)).mean((2, 3))) + self.early(x.mean((2, 3)))

    images = torch.randn(2, 3, 12, 12)
    assert find_residuals(TwoHeads(), images, ("head", "early")) == []
    assert len(find_residuals(TwoHeads(), images)) == 1  # the heads are not named


def test_blocks_branches_and_labels_have_their_names() -> None:
    classifier, example = on_meta("vit_b_32")
    first, second, *_ = find_residuals(classifier.model, example, classifier.head)
    assert (first.name, second.name) == tuple(
        f"encoder.layers.encoder_layer_0.{part}" for part in ("self_attention", "mlp")
    )
    assert first.branch[:2] == ("ln_1", "self_attention")
    classifier, example = on_meta("resnet18")
    names = [each.name for each in find_residuals(classifier.model, example, classifier.head)]
    assert names == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    residuals = find_residuals(TwoBlocks(), torch.randn(2, 3, 4, 4))
    assert [(each.name, each.branch, each.shape) for each in residuals] == [
        ("one", ("twice",), (2, 2, 4, 4)), ("two", ("first", "second"), (2, 4, 4, 4)),
    ]  # fmt: skip


def test_a_network_whose_forward_pass_fails_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("of all things\nand more")

    with pytest.raises(UsageError, match=r"cannot be traced: of all things$"):
        find_residuals(Broken(), torch.randn(1, 3, 8, 8))


def test_additions_of_the_first_call_only_are_not_counted() -> None:
    class Lazy(TwoBlocks):
        table: Tensor | None = None

        def forward(self, images: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(2) + torch.ones(2)
            return super().forward(images)

    assert [each.addition for each in find_residuals(Lazy(), torch.randn(1, 3, 4, 4))] == [0, 1]


def test_the_model_is_left_unchanged() -> None:
    classifier = registry.create("resnet18", 4, weights="none")
    model = classifier.model.train()
    model.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_residuals(model, torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not model.layer1.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", every(4, FAMILIES))
def test_x_plus_f_is_what_the_plain_model_computes(name: str) -> None:
    size = registry.size_limits(name)[0]
    size = {"maxvit_t": 224, "vit_b_32": 64}.get(name, max(size, 64))
    classifier = registry.create(name, 4, weights="none", input_size=size)
    model = classifier.model.eval()
    randomise_constants(model)
    images = torch.randn(1, 3, size, size)
    residuals = find_residuals(model, images, classifier.head)
    assert len(residuals) == sum(EXPECTED[name])
    plain = seen_by_hooks(model, images)
    for residual, parts in zip(residuals, operands(model, residuals, images), strict=True):
        inside = [tensor for module, tensor in plain if module == residual.block or module.startswith(residual.block)]
        assert any(is_same(parts.x + parts.branch, tensor) for tensor in inside), residual.name
        assert parts.branch.abs().max() > 0
        if residual.shortcut == "identity":
            assert any(is_same(parts.x, tensor) for tensor in inside), residual.name


def seen_by_hooks(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """Return inputs and outputs of each module, copied before an in-place operation can change them."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            seen.append((name, value.clone()))

    handles = []
    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, inputs, name=name: note(name, next(iter(inputs), None)))
        )
        handles.append(module.register_forward_hook(lambda m, inputs, output, name=name: note(name, output)))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def test_a_branch_overwritten_in_place_is_copied_before() -> None:
    block = Turning()
    x = torch.rand(1, 2, 3, 3)
    (residual,) = find_residuals(nn.Sequential(block), torch.rand(1, 2, 3, 3))
    (parts,) = operands(nn.Sequential(block), [residual], x)
    assert torch.allclose(parts.x[:, :2], x)
    assert torch.allclose(parts.branch[:, 2:], x / 2)
    assert torch.equal(parts.branch[:, :2], torch.zeros(1, 2, 3, 3))
