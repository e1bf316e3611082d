from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import classifier_of, randomise_constants
from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.inspection.drift import _gram, _hsic, measure_drift
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

EXAMPLE = torch.zeros(1, 3, 32, 32)


class Small(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.one(images)).mean((2, 3)))


def batches(count: int, size: int = 8, seed: int = 0) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(torch.randn(size, 3, 32, 32, generator=random), torch.zeros(size, dtype=torch.long)) for _ in range(count)
    ]


def pair() -> tuple[Classifier, Classifier]:
    torch.manual_seed(0)
    before = Small()
    return classifier_of(before), classifier_of(deepcopy(before))


def test_an_unchanged_network_has_not_moved() -> None:
    before, after = pair()
    drift = measure_drift(before, after, EXAMPLE, batches(2))
    assert [each.name for each in drift] == ["one", "two", "head"]
    assert [each.moved for each in drift] == [0, 0, 0]
    assert [each.similarity for each in drift] == pytest.approx([1, 1, 1])
    assert [each.is_head for each in drift] == [False, False, True]


def test_movement_is_relative_to_the_norm_of_the_weights() -> None:
    before, after = pair()
    with torch.no_grad():
        after.model.two.weight *= 1.25
    one, two, head = measure_drift(before, after, EXAMPLE)
    assert (one.moved, two.moved, head.moved) == (0, pytest.approx(0.25), 0)
    assert [each.similarity for each in (one, two, head)] == [None, None, None]


def test_cka_ignores_rotation_and_scale_but_not_a_new_layer() -> None:
    before, after = pair()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        after.model.one.weight.copy_(3 * torch.einsum("ij,jkhw->ikhw", turn, before.model.one.weight))
    one, two, _ = measure_drift(before, after, EXAMPLE, batches(4))
    assert one.similarity == pytest.approx(1, abs=1e-5)
    assert one.moved is not None
    assert one.moved > 1
    assert two.similarity is not None
    assert two.similarity < 0.98


def test_the_hsic_estimate_is_the_published_one_and_near_zero_for_unrelated_features() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 5)), random.normal(size=(12, 7))
    k, m = (_gram(torch.from_numpy(each)) for each in (x, y))
    assert k is not None
    assert m is not None
    n = 12
    # Song et al. (2012), equation 5: sums over distinct indices, written as loops.
    a, b = k.numpy().copy(), m.numpy().copy()
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    ones = np.ones(n)
    by_hand = (
        np.trace(a @ b)
        + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * ones @ a @ b @ ones
    ) / (n * (n - 3))
    assert _hsic(k, m) == pytest.approx(by_hand)
    # The biased estimate is near one for few images of many features.
    found = []
    for _ in range(200):
        one, other = (_gram(torch.from_numpy(random.normal(size=(8, 400)))) for _ in range(2))
        assert one is not None
        assert other is not None
        found.append(_hsic(one, other) / (_hsic(one, one) * _hsic(other, other)) ** 0.5)
    assert abs(np.mean(found)) < 0.05


def test_batchnorm_statistics_are_reported_apart_from_weights() -> None:
    before = registry.create("resnet18", 4, weights="none")
    after = deepcopy(before)
    randomise_constants(after.model)
    after.model.load_state_dict(before.model.state_dict())
    after.model.layer1[0].bn1.running_var *= 2
    drift = {each.name: each for each in measure_drift(before, after, EXAMPLE)}
    assert drift["layer1.0"].moved == 0
    assert drift["layer1.0"].statistics is not None
    assert drift["layer1.0"].statistics > 0.3
    assert drift["layer1.1"].statistics == 0
    assert drift["fc"].statistics is None


def test_a_new_head_has_no_movement_and_small_batches_are_skipped() -> None:
    before, after = pair()
    nn.init.zeros_(before.model.head.weight)
    nn.init.zeros_(before.model.head.bias)
    drift = measure_drift(before, after, EXAMPLE, batches(2, size=3))
    assert drift[-1].moved is None
    assert [each.similarity for each in drift] == [None, None, None]
    other = Small()
    other.head = nn.Linear(6, 9)
    assert measure_drift(classifier_of(other), after, EXAMPLE)[-1].moved is None


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UsageError, match="do not have the same layers"):
        measure_drift(registry.create("resnet18", 4, weights="none"), pair()[1], EXAMPLE)
