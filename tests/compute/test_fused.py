import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tl_cli.compute.fused import Shortcut, find_shortcuts, installed
from tl_cli.models import freezing
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

# Pre-activated blocks, asymmetric padding, an auxiliary head, norms with activations inside, no norms that can be
# folded at all, kernels larger than the map.
NETWORKS = [
    ("resnet18", 32, "last"),
    ("resnet18", 32, "first"),
    ("efficientnet_b0", 32, "last"),
    ("efficientnet_b0", 32, "first"),
    ("efficientnet_b0", 64, "last"),
    ("mobilenet_v3_small", 32, "first"),
    ("mobilenet_v3_small", 80, "last"),
    ("densenet121", 32, "last"),
    ("convnext_tiny", 32, "last"),
    ("googlenet", 32, "last"),
    ("shufflenet_v2_x0_5", 32, "first"),
    ("efficientnet_lite0", 32, "last"),
    ("efficientnet_lite0", 56, "last"),
    ("timm/resnetv2_18", 32, "last"),
    ("timm/regnety_004", 32, "last"),
]
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def randomised(name: str, size: int) -> Classifier:
    """Return a network whose norms have something to fold and whose head passes gradients on."""
    classifier = registry.create(name, 3, weights="none", input_size=size)
    torch.manual_seed(0)
    for norm in freezing.batch_norms(classifier.model.modules()):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
    for head in classifier.head_modules:
        nn.init.normal_(head.weight, std=0.05)
    return classifier


def images(size: int, count: int = 16) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def shortcuts_of(model: nn.Module, size: int) -> tuple[Shortcut, ...]:
    return find_shortcuts(model, images(size, 2).float(), images_last=True)


def logits_and_gradients(model: nn.Module, inputs: Tensor) -> list[Tensor | None]:
    """Return logits and all gradients, that of the images first."""
    model.zero_grad()
    inputs = inputs.clone().requires_grad_()
    logits = model(inputs)
    logits.square().sum().backward()
    return [logits.detach(), inputs.grad, *(p.grad for p in model.parameters())]


def assert_same(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 * float(other.abs().max() + 1e-12))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "channels"), NETWORKS)
def test_logits_and_gradients_are_those_without_shortcuts(name: str, size: int, channels: str) -> None:
    layout = LAYOUTS[channels]
    model = randomised(name, size).model
    freezing.unfreeze(model, "frozen")
    shortcuts = shortcuts_of(model, size)
    model.double().eval().to(memory_format=layout)
    inputs = images(size).contiguous(memory_format=layout)
    plain = logits_and_gradients(model, inputs)
    for fold in (False, True):
        with installed(shortcuts, fold=fold, always=True):
            assert_same(logits_and_gradients(model, inputs), plain)


def test_exactly_the_norms_after_a_convolution_are_found() -> None:
    folded = {}
    for name in ("resnet18", "efficientnet_b0", "densenet121"):
        model = randomised(name, 32).model
        folded[name] = sum(shortcut.norm is not None for shortcut in shortcuts_of(model, 32))
    # DenseNet's other 62 norms come before their convolution.
    assert folded == {"resnet18": 20, "efficientnet_b0": 49, "densenet121": 59}


def test_an_output_with_a_second_user_keeps_its_norm() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.conv(inputs)
            return torch.relu(self.norm(maps)) + maps

    (shortcut,) = shortcuts_of(Forked(), 16)
    assert shortcut.norm is None


def test_a_convolution_used_twice_keeps_its_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.conv(self.norm(self.conv(inputs)))

    (shortcut,) = shortcuts_of(Twice(), 16)
    assert shortcut.norm is None


def test_no_norm_is_folded_if_the_output_would_change() -> None:
    class Louder(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.drop, self.act = nn.Identity(), nn.Identity()

        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    (shortcut,) = shortcuts_of(nn.Sequential(nn.Conv2d(3, 3, 3), Louder()), 16)
    assert shortcut.norm is None


class Steep(nn.Module):
    """Amplifies rounding errors, as a deep network with random weights does."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.sin(maps * 1e6)


def test_rounding_that_grows_through_the_network_does_not_prevent_folding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Steep(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).eval()
    model[1].running_mean.normal_()
    inputs = images(8, 1).float()
    assert [shortcut.norm for shortcut in shortcuts_of(model, 8)] == [model[1], model[4]]
    with torch.no_grad():
        with installed(shortcuts_of(model, 8), fold=True, always=True):
            folded = model(inputs)
        # Otherwise the test could not fail.
        assert float((folded - model(inputs)).abs().max()) > 0.01 * float(folded.abs().max())


def test_a_network_that_forces_float32_is_compared_in_float32() -> None:
    class Stubborn(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.float()

    model = nn.Sequential(Stubborn(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    assert [shortcut.norm for shortcut in shortcuts_of(model, 8)] == [model[2]]


def test_a_norm_that_trains_is_not_folded() -> None:
    model = randomised("resnet18", 32).model
    shortcuts = shortcuts_of(model, 32)
    freezing.unfreeze(model, "train")
    model.double().train()
    plain, other = copy.deepcopy(model), model
    expected = logits_and_gradients(plain, images(32))
    with installed(shortcuts, fold=True, always=True):
        assert_same(logits_and_gradients(other, images(32)), expected)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


def test_frozen_parts_get_no_gradient_and_buffers_are_bit_identical() -> None:
    classifier = randomised("efficientnet_lite0", 32)
    model = classifier.model
    before = copy.deepcopy(model.state_dict())
    freezing.freeze_backbone(model, classifier.head_modules)
    with installed(shortcuts_of(model, 32), fold=True, always=True):
        model.train()(images(32).float()).square().sum().backward()
    assert {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {*classifier.head}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_finding_and_installing_shortcuts_leave_the_network_unchanged() -> None:
    model = randomised("mobilenet_v3_small", 32).model
    freezing.unfreeze(model, "frozen")
    model.train()
    before = {name: (module.training, dict(module.__dict__)) for name, module in model.named_modules()}
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with installed(shortcuts_of(model, 32), fold=True):
        assert [name for name, _ in model.named_modules()] == list(before)
        assert list(model.state_dict()) == list(state)
    assert {name: (m.training, dict(m.__dict__)) for name, m in model.named_modules()} == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_network_is_restored_after_an_error() -> None:
    model = randomised("resnet18", 32).model
    with pytest.raises(RuntimeError), installed(shortcuts_of(model, 32), fold=True):
        model(torch.zeros(1, 4, 32, 32))
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_copy_made_meanwhile_computes_with_its_own_weights() -> None:
    model = randomised("resnet18", 32).model.eval()
    with installed(shortcuts_of(model, 32), fold=True, always=True), torch.no_grad():
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        bent = twin(images(32).float())
        own = model(images(32).float())
    assert not torch.allclose(bent, own)


def test_weight_changes_between_passes_are_used() -> None:
    model = randomised("resnet18", 32).model.eval()
    shortcuts, inputs = shortcuts_of(model, 32), images(32)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
        expected = model(inputs)
        with installed(shortcuts, fold=True, always=True):
            torch.testing.assert_close(model(inputs), expected)


def test_kept_weights_are_used_without_gradients_only() -> None:
    model = randomised("resnet18", 32).model.eval()
    shortcuts, inputs = shortcuts_of(model, 32), images(32, 4).float()
    expected = model(inputs).detach()
    for dtype, tolerance in ((None, 1e-4), (torch.bfloat16, 0.1)):
        autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
        with installed(shortcuts, fold=True, folded={}), autocast:
            with torch.no_grad():
                first = model(inputs)
                torch.testing.assert_close(first.float(), expected, rtol=tolerance, atol=tolerance)
                model.conv1.weight.mul_(2)
                assert torch.equal(model(inputs), first)
            trained = model(inputs)
            assert not torch.equal(trained, first)
            trained.sum().backward()
            assert model.conv1.weight.grad is not None
        with torch.no_grad():
            model.conv1.weight.div_(2)
