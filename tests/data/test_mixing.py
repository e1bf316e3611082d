import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tl_cli.data.mixing import mix

BATCH, CLASSES = 10, 7
RNG = torch.Generator().manual_seed(0)
INPUTS = torch.randn(BATCH, 3, 12, 17, generator=RNG)
LABELS = torch.randint(CLASSES, (BATCH,), generator=RNG)
METHODS = [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]


def numbered() -> tuple[Tensor, Tensor]:
    """A batch whose pixels and labels are the place of the image: a blend then shows its share and its partner."""
    places = torch.arange(BATCH)
    return places.double().view(-1, 1, 1, 1).expand(-1, 3, 12, 17).contiguous(), places


def share_and_partner(targets: Tensor) -> tuple[float, Tensor]:
    """Return what targets of a numbered batch were made with; every image has a class of its own there."""
    own = targets.diagonal()
    others, partner = (targets - torch.diag(own)).max(1)
    is_alone = others == 0
    share = 1.0 if is_alone.all() else float(own[~is_alone][0])
    return share, torch.where(is_alone, torch.arange(BATCH), partner)


@pytest.mark.parametrize("method", METHODS)
def test_targets_are_shares_that_sum_to_one(method: dict[str, float]) -> None:
    for step in range(1, 30):
        mixed, targets = mix(INPUTS, LABELS, CLASSES, **method, seed=0, step=step)
        assert mixed.shape == INPUTS.shape
        assert targets.shape == (BATCH, CLASSES)
        assert targets.dtype == torch.float32
        assert (targets >= 0).all()
        torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))


def test_mixup_blends_images_and_targets_by_one_share() -> None:
    for step in range(1, 20):
        inputs, labels = numbered()
        _, targets = mix(inputs, labels, BATCH, mixup=1.0, cutmix=0.0, seed=5, step=step)
        share, partner = share_and_partner(targets)
        mixed, blended = mix(INPUTS, LABELS, CLASSES, mixup=1.0, cutmix=0.0, seed=5, step=step)
        one_hot = F.one_hot(LABELS, CLASSES)
        torch.testing.assert_close(mixed, share * INPUTS + (1 - share) * INPUTS[partner])
        torch.testing.assert_close(blended, share * one_hot + (1 - share) * one_hot[partner])


def test_cutmix_pastes_a_box_of_the_partner_and_its_exact_area_is_the_share() -> None:
    areas = set()
    for step in range(1, 60):
        inputs, labels = numbered()
        mixed, targets = mix(inputs, labels, BATCH, mixup=0.0, cutmix=1.0, seed=1, step=step)
        is_pasted = mixed != inputs
        if not is_pasted.any():
            continue
        share, partner = share_and_partner(targets)
        assert torch.equal(mixed, torch.where(is_pasted, inputs[partner], inputs))
        box = is_pasted[is_pasted.flatten(1).any(1)]
        assert (box == box[0, 0]).all()
        rows, columns = box[0, 0].any(1), box[0, 0].any(0)
        assert torch.equal(box[0, 0], rows[:, None] & columns[None])
        for line in (rows, columns):
            assert int(line.int().diff().abs().sum()) <= 2
        assert share == pytest.approx(1 - box[0, 0].float().mean().item(), abs=1e-6)
        areas.add(int(box[0, 0].sum()))
    assert len(areas) > 20


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_mixed_the_same_way_whatever_else_draws_numbers(method: dict[str, float]) -> None:
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
def test_inputs_are_left_as_they_are(method: dict[str, float]) -> None:
    inputs, labels = INPUTS.clone(), LABELS.clone()
    for step in range(1, 6):
        mix(inputs, labels, CLASSES, **method, seed=0, step=step)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixups_share_follows_its_beta_distribution(alpha: float) -> None:
    inputs, labels = numbered()
    shares = np.array(
        [
            share_and_partner(mix(inputs, labels, BATCH, mixup=alpha, cutmix=0.0, seed=0, step=step)[1])[0]
            for step in range(2000)
        ]
    )
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_with_both_methods_each_takes_half_of_the_steps() -> None:
    inputs, labels = numbered()
    pasted = []
    for step in range(600):
        mixed, _ = mix(inputs, labels, BATCH, mixup=1.0, cutmix=1.0, seed=2, step=step)
        pasted.append(torch.equal(mixed, mixed.round()))
    assert 0.44 < np.mean(pasted) < 0.56


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one_stays_what_it_is(method: dict[str, float]) -> None:
    mixed, targets = mix(INPUTS[:1], LABELS[:1], CLASSES, **method, seed=0, step=3)
    torch.testing.assert_close(mixed, INPUTS[:1])
    torch.testing.assert_close(targets, F.one_hot(LABELS[:1], CLASSES).float())


def test_half_precision_stays_half() -> None:
    for method in METHODS:
        assert mix(INPUTS.half(), LABELS, CLASSES, **method, seed=0, step=1)[0].dtype == torch.float16


def test_mixing_with_neither_method_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="nothing to mix"):
        mix(INPUTS, LABELS, CLASSES, mixup=0.0, cutmix=0.0, seed=0, step=1)
