from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.data.mixup import Mixup, rand_bbox
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tl_cli.data.augment.mixing import _boxes, mix

BATCH, CLASSES = 10, 7
RNG = torch.Generator().manual_seed(0)
INPUTS = torch.randn(BATCH, 3, 12, 17, generator=RNG)
LABELS = torch.randint(CLASSES, (BATCH,), generator=RNG)
METHODS = [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]


def numbered(count: int = BATCH) -> tuple[Tensor, Tensor]:
    """Return a batch whose pixels and labels are the image index, so that a blend reveals share and partner."""
    places = torch.arange(count)
    return places.double().view(-1, 1, 1, 1).expand(-1, 3, 12, 17).contiguous(), places


def shares_and_partners(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return shares and partners of the targets of a numbered batch, in which each image has its own class."""
    own = targets.diagonal()
    others, partner = (targets - torch.diag(own)).max(1)
    return own, torch.where(others == 0, torch.arange(len(targets)), partner)


class MixUpWithShares(Mixup):
    """timm's MixUp with given shares."""

    def __init__(self, shares: Tensor) -> None:
        super().__init__(mode="elem", label_smoothing=0.0, num_classes=CLASSES)
        self.shares = shares.numpy()

    def _params_per_elem(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        return self.shares.copy(), np.zeros(batch_size, dtype=bool)


@pytest.mark.parametrize("method", METHODS)
def test_targets_are_shares_that_sum_to_one(method: dict[str, float]) -> None:
    for step in range(1, 30):
        mixed, targets = mix(INPUTS, LABELS, CLASSES, **method, seed=0, step=step)
        assert mixed.shape == INPUTS.shape
        assert targets.shape == (BATCH, CLASSES)
        assert targets.dtype == torch.float32
        assert (targets >= 0).all()
        torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))


class DtypeRecorder(TorchDispatchMode):
    """Records the types of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.dtypes.update(each.dtype for each in tree_leaves(result) if isinstance(each, Tensor))
        return result


@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_has_double_precision_which_mps_lacks(method: dict[str, float]) -> None:
    with DtypeRecorder() as seen:
        mix(INPUTS, LABELS, CLASSES, **method, seed=0, step=1)
    assert torch.float32 in seen.dtypes
    assert torch.float64 not in seen.dtypes


def test_mixup_equals_timms_for_each_image_partner_and_share() -> None:
    for step in range(1, 20):
        inputs, labels = numbered()
        _, targets = mix(inputs, labels, BATCH, mixup=1.0, cutmix=0.0, seed=5, step=step)
        shares, partner = shares_and_partners(targets)
        assert len(shares.unique()) > BATCH / 2
        mixed, blended = mix(INPUTS, LABELS, CLASSES, mixup=1.0, cutmix=0.0, seed=5, step=step)
        # timm's partner of an image is the one with the same index from the end.
        order = torch.cat([torch.arange(BATCH), partner.flip(0)])
        theirs = MixUpWithShares(torch.cat([shares, shares.flip(0)]))(INPUTS[order], LABELS[order])
        torch.testing.assert_close(mixed, theirs[0][:BATCH])
        torch.testing.assert_close(blended, theirs[1][:BATCH])


def test_cutmix_pastes_a_box_of_the_partner_and_its_exact_area_is_the_share() -> None:
    areas = set()
    for step in range(1, 20):
        inputs, labels = numbered()
        mixed, targets = mix(inputs, labels, BATCH, mixup=0.0, cutmix=1.0, seed=1, step=step)
        shares, partner = shares_and_partners(targets)
        boxes = mixed != inputs
        assert torch.equal(mixed, torch.where(boxes, inputs[partner], inputs))
        assert (boxes == boxes[:, :1]).all()
        for box, share in zip(boxes[:, 0], shares.tolist(), strict=True):
            rows, columns = box.any(1), box.any(0)
            assert torch.equal(box, rows[:, None] & columns[None])
            for line in (rows, columns):
                assert int(line.int().diff().abs().sum()) <= 2
            if box.any():
                assert share == pytest.approx(1 - box.float().mean().item(), abs=1e-6)
        areas.add(tuple(boxes[:, 0].sum((1, 2)).tolist()))
        assert len(set(boxes[:, 0].sum((1, 2)).tolist())) > 2
    assert len(areas) == 19


def test_boxes_equal_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    shares, rows, columns = draws.random(200), draws.integers(12, size=200), draws.integers(17, size=200)
    shares[:2] = 0, 1
    found = np.stack(_boxes(shares, rows, columns, 12, 17), 1)
    for share, row, column, box in zip(shares, rows, columns, found, strict=True):
        centre = iter((row, column))
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        assert tuple(box) == rand_bbox((3, 12, 17), share)


@pytest.mark.parametrize("method", METHODS)
def test_mixing_does_not_depend_on_other_random_numbers(method: dict[str, float]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = mix(INPUTS, LABELS, CLASSES, **method, seed=3, step=8)
    state, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()
    torch.rand(5)
    again = mix(INPUTS, LABELS, CLASSES, **method, seed=3, step=8)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert (np.random.get_state()[1] == state).all()
    assert not torch.equal(torch.get_rng_state(), torchs)
    for seed, step in ((3, 9), (4, 8)):
        assert not torch.equal(mix(INPUTS, LABELS, CLASSES, **method, seed=seed, step=step)[0], first[0])


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_not_modified(method: dict[str, float]) -> None:
    inputs, labels = INPUTS.clone(), LABELS.clone()
    for step in range(1, 6):
        mix(inputs, labels, CLASSES, **method, seed=0, step=step)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixups_shares_follow_their_beta_distribution(alpha: float) -> None:
    count = 400  # about one image is its own partner, as if its share were one
    inputs, labels = numbered(count)
    shares = torch.stack(
        [
            shares_and_partners(mix(inputs, labels, count, mixup=alpha, cutmix=0.0, seed=0, step=step)[1])[0]
            for step in range(10)
        ]
    ).double()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    # The last bits of a draw are ignored, since they depend on the processor.
    assert torch.equal(shares * 2**16, (shares * 2**16).round())


def test_each_of_both_methods_is_used_for_half_of_the_images() -> None:
    inputs, labels = numbered()
    pasted = torch.stack(
        [
            (mixed == mixed.round()).flatten(1).all(1)
            for mixed, _ in (
                mix(inputs, labels, BATCH, mixup=1.0, cutmix=1.0, seed=2, step=step) for step in range(200)
            )
        ]
    ).double()
    assert 0.44 < pasted.mean() < 0.6  # an image that is its own partner counts as unmixed
    assert 0 < pasted[0].mean() < 1


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one_is_not_changed(method: dict[str, float]) -> None:
    mixed, targets = mix(INPUTS[:1], LABELS[:1], CLASSES, **method, seed=0, step=3)
    torch.testing.assert_close(mixed, INPUTS[:1])
    torch.testing.assert_close(targets, F.one_hot(LABELS[:1], CLASSES).float())


def test_half_precision_stays_half() -> None:
    for method in METHODS:
        assert mix(INPUTS.half(), LABELS, CLASSES, **method, seed=0, step=1)[0].dtype == torch.float16


def test_mixing_with_neither_method_is_refused() -> None:
    with pytest.raises(AssertionError, match="nothing to mix"):
        mix(INPUTS, LABELS, CLASSES, mixup=0.0, cutmix=0.0, seed=0, step=1)
