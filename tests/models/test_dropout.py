from pathlib import Path

import pytest
import torch

from tests.support.training import SMALL_RESNET, plan_for, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["resnet18", "efficientnet_b0", "vgg11", "squeezenet1_1", "googlenet", "timm/resnet18"]
)
def test_dropout_acts_on_the_input_of_any_head_in_training_only(colours: Path, model: str) -> None:
    plan = plan_for(colours, model=model, input_size=64, dropout=0.75, limit=6)
    head = plan.classifier.head_modules[0]
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.randn(4, 3, 64, 64)
    plan.classifier.model.eval()(images)
    head.train()
    plan.classifier.model(images)
    clean, dropped = seen
    kept = dropped != 0
    assert torch.allclose(dropped[kept], 4 * clean[kept], rtol=1e-4)
    assert kept[clean != 0].float().mean().item() == pytest.approx(0.25, abs=0.08)


def test_dropout_reaches_the_head_phase_on_cached_features(colours: Path) -> None:
    ends = []
    for dropout in (None, 0.5):
        plan = plan_for(colours, **SMALL_RESNET, dropout=dropout, epochs=1)
        assert plan.cached
        ends.append(run(plan)[1].model.fc.weight.clone())
    assert not torch.equal(*ends)


def test_a_hidden_layers_dropout_is_not_changed(colours: Path) -> None:
    plan = plan_for(colours, model="alexnet", input_size=64, dropout=0.2, limit=6)
    assert [plan.classifier.model.classifier[index].p for index in (0, 3)] == [0.5, 0.5]
