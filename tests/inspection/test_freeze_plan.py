from functools import partial

import pytest
import torch
from torch import nn

from tests.support.zoo import on_meta
from tl_cli.inspection.freeze_plan import freeze_by_name, freeze_plan
from tl_cli.models.freezing import BatchNormMode, freeze_backbone, unfreeze
from tl_cli.models.zoo import registry


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_32", "vgg11_bn", "mobilenet_v3_small"])
@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_the_freeze_plan_adds_up_and_matches_the_model(name: str, bn: BatchNormMode) -> None:
    classifier, _ = on_meta(name)
    model = classifier.model
    parts = freeze_plan(
        classifier, [lambda: freeze_backbone(model, classifier.head_modules), lambda: unfreeze(model, bn)]
    )
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    head = [part for part in parts if part.is_head]
    assert [part.name for part in head] == list(classifier.head)
    for part in parts:
        assert part.trainable == (part.parameters if part.is_head else 0, part.parameters)
        assert part.updating == (0, part.batch_norms if bn == "train" else 0)


def test_freezing_by_name_freezes_the_head_of_efficientnet() -> None:
    with torch.device("meta"):
        model = registry.build("efficientnet_b0", 10)
    classifier, _ = on_meta("efficientnet_b0")
    plan = freeze_by_name(
        type(classifier)("efficientnet_b0", model, classifier.head, classifier.preprocessing, classifier.weights)
    )
    assert (plan.frozen, plan.frozen + plan.trainable) == (3_383_818, 4_020_358)
    assert plan.head_frozen == ("classifier.1",)
    assert (plan.body_trained, plan.example) == (32, "features.1.0.block.1.fc1")
    assert not plan.is_right
    assert freeze_by_name(on_meta("resnet18")[0]).is_right
    nothing = freeze_by_name(on_meta("vit_b_32")[0])
    assert (nothing.trainable, nothing.head_frozen, nothing.body_trained) == (0, ("heads.head",), 0)


def state(model: nn.Module) -> list[object]:
    modes = [(module.training, module.__dict__.get("train")) for module in model.modules()]
    return [*(p.requires_grad for p in model.parameters()), *modes]


def fail() -> None:
    raise RuntimeError("no such phase")


def test_the_model_is_left_unchanged() -> None:
    classifier = registry.create("resnet18", 4, weights="none")
    model = classifier.model
    thaw = partial(unfreeze, model, "train")
    untouched = state(model)
    assert [part.trainable[0] for part in freeze_plan(classifier, [thaw])] == [
        part.parameters for part in freeze_plan(classifier, [thaw])
    ]
    assert state(model) == untouched
    freeze_backbone(model, classifier.head_modules)
    frozen = state(model)
    assert frozen != untouched
    freeze_plan(classifier, [thaw])
    with pytest.raises(RuntimeError, match="no such phase"):
        freeze_plan(classifier, [thaw, fail])
    assert state(model) == frozen
    # The backbone still ignores train().
    model.train()
    assert not model.bn1.training
