import pytest
import torch

from tl_cli.training.optim import lr_factor


def test_one_cycle_equals_torchs_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, cycle_momentum=False)
    for step in range(101):
        assert lr_factor("one-cycle", 0.1, step, 101) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < 100:
            reference.step()


def test_cosine_rises_and_falls_to_zero() -> None:
    rates = [lr_factor("cosine", 0.2, step, 50) for step in range(50)]
    top = rates.index(max(rates))
    assert 8 <= top <= 11
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0
    # No step has a rate of zero, which would look like a frozen backbone.
    assert 0 < rates[-1] < 0.01
    assert max(rates) <= 1


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "plateau"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_phases_have_valid_rates(schedule, steps: int) -> None:
    assert all(0 <= lr_factor(schedule, 0.1, step, steps) <= 1 for step in range(steps))
