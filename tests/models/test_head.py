from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.zoo import NAME, card
from tl_cli.errors import UsageError
from tl_cli.models import bundle
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

NUMBERS = tuple(str(number) for number in range(1, 11))
AS_TEXT = tuple(sorted(NUMBERS))  # 1, 10, 2, ...


def trained(name: str, size: int, count: int = 10) -> Classifier:
    """Return an architecture with a randomised head."""
    classifier = registry.create(name, count, weights="none", input_size=size, seed=5)
    torch.manual_seed(3)
    for module in classifier.head_modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    classifier.model.eval()
    return classifier


def as_file(classifier: Classifier, path: Path, **facts: object) -> str:
    torch.save({"state_dict": classifier.model.state_dict(), **facts}, path)
    return str(path)


def logits(classifier: Classifier, size: int) -> torch.Tensor:
    with torch.inference_mode():
        return classifier.model.eval()(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def rows(classifier: Classifier) -> torch.Tensor:
    (head,) = classifier.head_modules
    return head.weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "modules"),
    [
        (NAME, 32, 1),
        ("squeezenet1_1", 32, 1),  # a convolution
        ("maxvit_t", 224, 1),  # without bias
        ("timm/efficientformerv2_s0", 32, 2),  # distilled: the mean of two heads
        ("timm/efficientvim_m1", 64, 4),
    ],
)
def test_every_class_keeps_its_logit_whatever_the_order(name: str, size: int, modules: int, tmp_path: Path) -> None:
    before = trained(name, size)
    assert len(before.head) == modules
    weights = as_file(before, tmp_path / "other.pth", class_to_idx={name: index for index, name in enumerate(NUMBERS)})
    after = registry.create(name, 10, weights=weights, classes=AS_TEXT, input_size=size)
    assert not after.head_is_new
    expected = logits(before, size)[:, [int(number) - 1 for number in AS_TEXT]]
    torch.testing.assert_close(logits(after, size), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_known_classes_are_kept_and_others_are_new(tmp_path: Path) -> None:
    before = trained(NAME, 32, 3)
    bundle.save(tmp_path, before.model, card(("ant", "bee", "cat")))
    after = registry.create(NAME, 4, weights=str(tmp_path), classes=("bee", "cat", "cow", "dog"))
    assert torch.equal(rows(after)[:2], rows(before)[1:])
    assert not rows(after)[2:].any()
    assert after.model.fc.bias.tolist() == [*before.model.fc.bias[1:].tolist(), 0, 0]
    assert after.head_start is not None
    assert after.head_start.reason == "2 of 4 classes kept, matched by name; new: cow, dog; 1 of the weights not used"
    other = registry.create(NAME, 3, weights=str(tmp_path), classes=("x", "y", "z"))
    assert other.head_is_new
    assert not rows(other).any()
    # The file of a saved model is accepted like its folder.
    assert registry.create(
        NAME, 3, weights=str(tmp_path / bundle.WEIGHTS_FILE), classes=("ant", "bee", "cat")
    ).head_start == (registry.create(NAME, 3, weights=str(tmp_path), classes=("ant", "bee", "cat")).head_start)


def test_a_head_of_unnamed_classes_is_kept_only_on_request(tmp_path: Path) -> None:
    before = trained(NAME, 32)
    weights = as_file(before, tmp_path / "bare.pth")
    decided = registry.create(NAME, 10, weights=weights, classes=AS_TEXT)
    assert decided.head_is_new
    assert not rows(decided).any()
    assert torch.equal(decided.model.conv1[0].weight, before.model.conv1[0].weight)
    kept = registry.create(NAME, 10, weights=weights, classes=AS_TEXT, head="keep")
    assert torch.equal(rows(kept), rows(before))
    assert kept.head_start is not None
    assert kept.head_start.reason == "kept by position (--head keep)"
    with pytest.raises(UsageError, match="a head for 10 classes and the data 9 classes"):
        registry.create(NAME, 9, weights=weights, classes=AS_TEXT[:9], head="keep")


def test_the_starting_point_of_an_older_run_keeps_the_head_of_its_file(tmp_path: Path) -> None:
    before = trained(NAME, 32, 3)
    weights = as_file(before, tmp_path / "bare.pth")
    start = registry.create(NAME, 3, weights=weights)
    facts = card(("ant", "bee", "cat")).model_copy(update={"weights": start.weights})
    old, now = ({"model": NAME, "weights": weights, **given} for given in ({}, {"head": None}))
    assert torch.equal(rows(registry.starting_point(facts.model_copy(update={"config": old}))), rows(before))
    assert not rows(registry.starting_point(facts.model_copy(update={"config": now}))).any()


@pytest.mark.parametrize(
    ("classes", "is_kept"), [(("ant", "bee", "cat"), True), (("bee", "ant", "cat"), False), (("ant", "bee", "cow"), False)]
)  # fmt: skip
def test_the_starting_point_of_an_older_run_keeps_all_or_no_rows_of_a_saved_model(
    classes: tuple[str, ...], is_kept: bool, tmp_path: Path
) -> None:
    before = trained(NAME, 32, 3)
    bundle.save(tmp_path, before.model, card(("ant", "bee", "cat")))
    tag = registry.create(NAME, 3, weights=str(tmp_path)).weights
    old = card(classes).model_copy(update={"weights": tag, "config": {"model": NAME, "weights": str(tmp_path)}})
    expected = rows(before) if is_kept else torch.zeros_like(rows(before))
    assert torch.equal(rows(registry.starting_point(old)), expected)


def test_the_starting_point_of_an_older_run_ignores_class_names_in_its_file(tmp_path: Path) -> None:
    before = trained(NAME, 32, 3)
    weights = as_file(before, tmp_path / "named.pth", classes=["ant", "bee", "cat"])
    tag = registry.create(NAME, 3, weights=weights).weights
    old = card(("x", "y", "z")).model_copy(update={"weights": tag, "config": {"model": NAME, "weights": weights}})
    assert torch.equal(rows(registry.starting_point(old)), rows(before))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 999])
def test_the_starting_point_of_an_older_run_keeps_a_published_head_with_equally_many_classes(count: int) -> None:
    published = registry.create("efficientnet_lite0", None)
    facts = card(tuple(map(str, range(count))), "efficientnet_lite0").model_copy(update={"weights": published.weights})
    old, now = (
        rows(registry.starting_point(facts.model_copy(update={"config": {"model": "efficientnet_lite0", **given}})))
        for given in ({}, {"head": None})
    )
    assert torch.equal(old, rows(published) if count == 1000 else torch.zeros(count, 1280))
    assert not now.any()


def test_new_and_keep_override_matching_by_name(tmp_path: Path) -> None:
    before = trained(NAME, 32)
    bundle.save(tmp_path, before.model, card(NUMBERS))
    assert not rows(registry.create(NAME, 10, weights=str(tmp_path), classes=NUMBERS, head="new")).any()
    kept = registry.create(NAME, 10, weights=str(tmp_path), classes=AS_TEXT, head="keep")
    assert torch.equal(rows(kept), rows(before))
    assert kept.head_start is not None
    assert "another order" in kept.head_start.reason


def test_the_head_of_published_weights_is_new_even_with_equally_many_classes() -> None:
    assert not registry.create("efficientnet_lite0", None).head_is_new
    many = tuple(map(str, range(1000)))
    assert registry.create("efficientnet_lite0", 1000, classes=many).head_is_new
    kept = registry.create("efficientnet_lite0", 1000, classes=many, head="keep")
    assert torch.equal(rows(kept), rows(registry.create("efficientnet_lite0", None)))
