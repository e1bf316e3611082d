import pytest
import torch
from torch import nn

from tests.support.networks import assert_equals_the_whole
from tl_cli.data.batches import Batch
from tl_cli.evaluation.logits import outputs
from tl_cli.models import freezing
from tl_cli.models.classifier import Classifier
from tl_cli.models.graph import Cut, Network
from tl_cli.models.layers import layers_of
from tl_cli.models.zoo import registry

# One network per kind of forward pass: residual, squeeze-excitation, dense, branches, tokens, windows, several heads.
NAMES = [
    ("resnet18", 32), ("efficientnet_b0", 32), ("mobilenet_v3_small", 32), ("densenet121", 32), ("googlenet", 32),
    ("squeezenet1_1", 64), ("shufflenet_v2_x0_5", 32),
    ("timm/levit_128s", 224), ("timm/vit_tiny_patch16_224", 32), ("timm/convnextv2_atto", 32),
]  # fmt: skip


def network(name: str, size: int, **options: float) -> tuple[Classifier, torch.Tensor]:
    classifier = registry.create(name, 5, weights="none", input_size=size, **options)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for head in classifier.head_modules:
            for parameter in head.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    return classifier, images


def freeze_below(classifier: Classifier, images: torch.Tensor, share: float) -> list[nn.Parameter]:
    """Freeze a share of the layers; return the parameters that train."""
    layers = layers_of(classifier, images[:1])
    freezing.unfreeze(classifier.model, "frozen")
    for layer in layers[: int(share * len(layers))]:
        freezing.freeze(layer.modules, layer.parameters)
    return [p for p in classifier.model.parameters() if p.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), NAMES)
def test_both_parts_together_have_the_logits_and_gradients_of_the_whole(name: str, size: int) -> None:
    classifier, images = network(name, size)
    net = Network(classifier, images[:1])
    for share in (0.5, 1.0):
        if share == 1.0:
            freezing.freeze_backbone(classifier.model, classifier.head_modules)
            trained = [p for p in classifier.model.parameters() if p.requires_grad]
        else:
            trained = freeze_below(classifier, images, share)
        cut = net.cut()
        assert cut is not None
        assert_equals_the_whole(cut, classifier.model, images, trained)


def test_the_longest_frozen_prefix_is_found() -> None:
    classifier, images = network("resnet18", 32)
    net = Network(classifier, images[:1])
    assert net.cut() is None  # nothing is frozen
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    head = net.cut()
    assert head is not None
    assert (head.after, head.shape) == ("avgpool", (512,))
    assert head.tail_cost == 5 * 512
    freezing.unfreeze(classifier.model, "train")
    for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2"):
        module = classifier.model.get_submodule(part)
        freezing.freeze([module], module.parameters())
    half = net.cut()
    assert half is not None
    assert (half.after, half.shape) == ("layer2.1", (128, 4, 4))
    assert half.prefix_cost + half.tail_cost == head.prefix_cost + head.tail_cost
    # BatchNorm above the cut continues to train, in the tail as in the whole network.
    assert any(m.training for m in half.tail.train().modules() if isinstance(m, nn.BatchNorm2d))


def test_a_layer_that_updates_statistics_is_not_in_the_prefix() -> None:
    classifier, images = network("resnet18", 32)
    net = Network(classifier, images[:1])
    freezing.unfreeze(classifier.model, "train")
    for parameter in classifier.model.parameters():
        parameter.requires_grad_(False)
    classifier.model.fc.requires_grad_(True)
    cut = net.cut()
    assert cut is not None
    assert cut.after == "conv1"


def test_a_partly_frozen_densenet_is_cut_between_blocks() -> None:
    classifier, images = network("densenet121", 32)
    layers = layers_of(classifier, images[:1])
    index = next(i for i, layer in enumerate(layers) if layer.name.endswith("denseblock2.denselayer5"))
    freezing.unfreeze(classifier.model, "frozen")
    for layer in layers[:index]:
        freezing.freeze(layer.modules, layer.parameters)
    cut = Network(classifier, images[:1]).cut()
    assert cut is not None
    assert cut.after == "features.transition1.pool"


class Branching(nn.Module):
    """Has data-dependent control flow, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images).mean((2, 3))
        if features.sum() > 0:
            features = features * 2
        return self.fc(features)


def test_a_network_that_cannot_be_traced_is_cut_before_its_head() -> None:
    classifier, images = network("resnet18", 32)
    branching = Classifier("own", Branching(), ("fc",), classifier.preprocessing, classifier.weights)
    net = Network(branching, images[:1])
    assert net.cut() is None
    freezing.freeze_backbone(branching.model, branching.head_modules)
    cut = net.cut()
    assert cut is not None
    assert cut.shape == (8,)
    torch.testing.assert_close(cut.tail(cut.prefix(images)), branching.model.eval()(images))


def test_several_threads_may_run_the_prefix() -> None:
    classifier, _ = network("resnet18", 32)
    branching = Classifier("own", Branching(), ("fc",), classifier.preprocessing, classifier.weights)
    freezing.freeze_backbone(branching.model, branching.head_modules)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    cut = Network(branching, images[:1]).cut()
    assert cut is not None
    head = branching.model.fc
    batches = [Batch(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(1)]
    together = [found for _, found in outputs(cut.prefix, batches, at_once=4)]
    assert branching.model.fc is head
    assert {tuple(found.shape) for found in together} == {(1, 8)}
    with torch.inference_mode():
        assert all(torch.equal(found, cut.prefix(batch.inputs)) for found, batch in zip(together, batches, strict=True))
    # Changes of the head do not change the prefix.
    assert not any(name.startswith("fc") for name in cut.prefix.state_dict())


class Nested(nn.Module):
    """Has a nested head and data-dependent control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        return self.top["mlp"](means if means.sum() > 0 else -means)


def test_a_nested_head_is_left_out_of_the_prefix() -> None:
    classifier, images = network("resnet18", 32)
    nested = Classifier("own", Nested(), ("top.mlp.2",), classifier.preprocessing, classifier.weights)
    freezing.freeze_backbone(nested.model, nested.head_modules)
    cut = Network(nested, images[:1]).cut()
    assert cut is not None
    assert cut.shape == (8,)
    torch.testing.assert_close(cut.tail(cut.prefix(images)), nested.model.eval()(images))
    assert isinstance(nested.model.top["mlp"][2], nn.Linear)


class AsksItsHead(Branching):
    """Reads its head's weights, so that the head cannot be removed."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.to(self.fc.weight.dtype))


def test_a_head_that_other_modules_read_is_not_cut_off() -> None:
    classifier, images = network("resnet18", 32)
    odd = Classifier("own", AsksItsHead(), ("fc",), classifier.preprocessing, classifier.weights)
    freezing.freeze_backbone(odd.model, odd.head_modules)
    assert Network(odd, images[:1]).cut() is None


class DropsByItself(nn.Module):
    """Drops features by its own training flag, not with a dropout module."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.body = nn.Linear(3, 64)
        self.middle = nn.Linear(64, 64)
        self.fc = nn.Linear(64, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.dropout(self.body(images.mean((2, 3))), self.share, self.training)
        return self.fc(self.middle(features))


@pytest.mark.parametrize(("share", "is_cut"), [(0.0, True), (0.5, False)])
def test_a_network_whose_parts_would_train_differently_is_not_cut(share: float, is_cut: bool) -> None:
    classifier, images = network("resnet18", 32)
    odd = Classifier("own", DropsByItself(share), ("fc",), classifier.preprocessing, classifier.weights)
    freezing.freeze([odd.model.body], odd.model.body.parameters())
    assert (Network(odd, images[:1]).cut() is not None) is is_cut


class TwoPasses(nn.Module):
    """Uses its head in the middle, so that it cannot be cut before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3 * 32 * 32, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images.flatten(1))
        return self.fc(features) + images.mean((1, 2, 3))[:, None]


def test_a_network_whose_images_bypass_the_frozen_part_is_not_cut() -> None:
    classifier, images = network("resnet18", 32)
    odd = Classifier("own", TwoPasses(), ("fc",), classifier.preprocessing, classifier.weights)
    freezing.freeze_backbone(odd.model, odd.head_modules)
    assert Network(odd, images[:1]).cut() is None


def test_cutting_leaves_the_network_unchanged() -> None:
    classifier, images = network("efficientnet_b0", 32)
    trained = freeze_below(classifier, images, 0.5)
    before = {key: value.clone() for key, value in classifier.model.state_dict().items()}
    names = [name for name, _ in classifier.model.named_modules()]
    modes = [module.training for module in classifier.model.modules()]
    cut = Network(classifier, images[:1]).cut()
    assert isinstance(cut, Cut)
    assert [name for name, _ in classifier.model.named_modules()] == names
    assert [module.training for module in classifier.model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in classifier.model.state_dict().items())
    inside = {id(p) for p in cut.tail.parameters()}
    assert {id(p) for p in trained} <= inside
    assert not inside & {id(p) for p in cut.prefix.parameters()}
