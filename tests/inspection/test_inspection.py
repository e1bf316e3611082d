import pytest

from tests.models.test_layers import on_meta
from tl_cli.errors import UsageError
from tl_cli.inspection.freeze_plan import freeze_plan
from tl_cli.inspection.summary import summarize
from tl_cli.models.freezing import BatchNormMode, freeze_backbone, unfreeze


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_32", "vgg11_bn", "mobilenet_v3_small"])
@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_the_freeze_plan_adds_up_and_tells_the_truth(name: str, bn: BatchNormMode) -> None:
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


def test_the_tree_of_efficientnet_b0_is_right() -> None:
    root = summarize("efficientnet_b0", 10, 224)
    assert (root.parameters, root.trainable, root.output) == (4_020_358, 12_810, (1, 10))
    features = root.children[0]
    assert (features.name, features.output) == ("features", (1, 1280, 7, 7))
    assert [child.name for child in root.children[2].children if child.is_head] == ["classifier.1"]
    assert sum(child.parameters for child in root.children) == root.parameters


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot take images of \(50, 50\)"):
        summarize("vit_b_16", 10, 50)
