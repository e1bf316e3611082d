from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.pictures import COLOURS, write_pictures
from tests.support.training import RESNET, SMALL_EFFICIENTNET, WITHOUT_BATCH_NORM_OR_DROPOUT, plan_for, run
from tl_cli.data.batches import Batch
from tl_cli.evaluation.task import SINGLE_LABEL
from tl_cli.training.config import TrainConfig
from tl_cli.training.events import LossSampled
from tl_cli.training.step import Objective, train_step


def gradients(accumulate: int, objective: Objective, batch: Batch, **settings: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)
    ).double()
    state = type("State", (), {})()
    state.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state.scaler = torch.amp.GradScaler("cpu", enabled=False)
    state.average = None
    config = TrainConfig.model_construct(batch_size=-(-len(batch.labels) // accumulate), clip_norm=0.0, bn="frozen")
    train_step(model, batch, state, config, objective, 1)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_accumulation_equals_the_large_batch_to_rounding(smoothing: float, weighted: bool, mixup: float) -> None:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(10, 3, 8, 8, generator=random, dtype=torch.float64)
    batch = Batch(images, torch.randint(3, (10,), generator=random))
    weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64) if weighted else None
    if mixup and weighted:
        weights = weights.float() if weights is not None else None
    objective = Objective(SINGLE_LABEL, 3, smoothing, weights.double() if weights is not None else None, mixup=mixup)
    if mixup:
        # Targets come as float32; the comparison is in double.
        prepare = objective.prepare(batch, 1)
        mixed = Batch(prepare[0], prepare[1].double())  # type: ignore[arg-type]
        whole, pieces = (soft_gradients(k, objective, mixed) for k in (1, 3))
    else:
        whole, pieces = (gradients(k, objective, batch) for k in (1, 3))
    for name, value in whole.items():
        assert torch.allclose(value, pieces[name], rtol=1e-10, atol=1e-12), name


def soft_gradients(accumulate: int, objective: Objective, mixed: Batch) -> dict[str, torch.Tensor]:
    class Prepared(Objective):
        def prepare(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            return mixed.inputs, mixed.labels

    plain = Prepared(SINGLE_LABEL, objective.num_classes, objective.label_smoothing, objective.class_weights)
    return gradients(accumulate, plain, Batch(mixed.inputs, mixed.labels.argmax(1)))


def test_accumulation_trains_as_the_large_batch_does(colours: Path) -> None:
    settings = {**WITHOUT_BATCH_NORM_OR_DROPOUT, "freeze_epochs": 0, "epochs": 2, "log_every": 1, "lr": 1e-3}
    losses = []
    for size, pieces in ((16, 1), (4, 4)):
        events, _ = run(plan_for(colours, **settings, batch_size=size, accumulate=pieces))
        losses.append([event.loss for event in events if isinstance(event, LossSampled)])
    assert len(losses[0]) == len(losses[1]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < 0.95 * losses[0][0]


def test_no_batch_of_a_step_is_a_single_image(colours: Path) -> None:
    """BatchNorm cannot train on one image; three images are left for the last step, in batches of two."""
    settings = {**SMALL_EFFICIENTNET, "freeze_epochs": 0, "epochs": 1, "bn": "train", "limit": 42, "val_fraction": 0.06}
    plan = plan_for(colours, **settings, batch_size=2, accumulate=2)
    assert plan.images_per_step == 4
    assert len(plan.data.parts["train"]) % 4 == 3
    run(plan)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uneven")
    for count, (name, colour) in zip((40, 10, 5), COLOURS.items(), strict=True):
        write_pictures(root / "train", {name: colour}, count)
        write_pictures(root / "test", {name: colour}, 3)
    return root


def test_class_weights_equal_scikit_learns_balanced(uneven: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    plan = plan_for(uneven, **RESNET, class_weights="balanced")
    labels = plan.data.parts["train"].labels
    weights = plan.objective(mixes=False).class_weights
    assert weights is not None
    assert weights.numpy() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels), rel=1e-6)


@pytest.mark.parametrize("cache", [True, False])
def test_the_balanced_sampler_shows_every_class_equally_often(uneven: Path, cache: bool) -> None:
    from tl_cli.training.plan import open_phase

    plan = plan_for(uneven, **RESNET, sampler="balanced", feature_cache=cache, bn="frozen")
    stage = open_phase(plan, plan.phases[0], lambda event: None)
    assert stage.cached is cache
    seen = Counter(int(label) for batch in stage.train(1, 0) for label in batch.labels)
    assert sum(seen.values()) == len(plan.data.parts["train"])
    assert max(seen.values()) - min(seen.values()) <= 1
