import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.support.zoo import card, trained
from tl_cli.contract import Calibration, Preprocessing
from tl_cli.errors import WeightsError
from tl_cli.models import bundle
from tl_cli.models.zoo import registry


def test_a_saved_model_is_restored_unchanged(tmp_path: Path) -> None:
    model = trained()
    saved = bundle.save(tmp_path, model, card(("a", "b", "c")))
    classifier, read = registry.restore(tmp_path)
    assert read == saved
    assert read.weights_sha256 == hashlib.sha256((tmp_path / bundle.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert read.model_copy(update={"weights_sha256": None}) == card(("a", "b", "c"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(classifier.model(images), model.eval()(images))


def set_in(facts: dict, field: str, value: object) -> None:
    *parents, last = field.split(".")
    for each in parents:
        facts = facts[each]
    facts[last] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preprocessing.resize", 2_000_000_000),
        ("preprocessing.resize", 0),
        ("preprocessing.resize", 1),
        ("preprocessing.resize", "large"),
        ("preprocessing.crop", -1),
        ("preprocessing.mean", [0.5, float("nan"), 0.5]),
        ("preprocessing.mean", [0.5, 1e300, 0.5]),
        ("preprocessing.std", [0.5, 0.0, 0.5]),
        ("preprocessing.std", [0.5, float("inf"), 0.5]),
        ("preprocessing.pixel_range", [5.0, 5.0]),
        ("preprocessing.crop_mode", "middle"),
        ("data.split_seed", -1),
        ("data.val_fraction", 1.5),
        ("data.test_fraction", float("nan")),
        ("data.limit", 0),
        ("data.source", "a\0b"),
        ("data.splits", {"train": {"count": -3, "digest": ""}}),
        ("classes", ["a", "b", "a"]),
        ("classes", []),
        ("classes", "abc"),
        ("head", []),
        ("build_options", {"image_size": 1 << 40}),
        ("epoch", -1),
        ("val_accuracy", 7),
        ("calibration.temperature", 1e-300),
        ("calibration.images", -1),
        ("config", {"seed": -1}),
        ("architecture", ""),
        ("format", 3),
    ],
)
def test_the_error_for_an_edited_card_names_the_field(field: str, value: object, tmp_path: Path) -> None:
    facts = card(("a", "b", "c")).model_copy(update={"calibration": Calibration()}).model_dump(mode="json")
    set_in(facts, field, value)
    (tmp_path / bundle.CARD_FILE).write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=rf"{bundle.CARD_FILE} is not what tl writes: {re.escape(field)}"):
        bundle.read_card(tmp_path)
    if field == "config":
        with pytest.raises(WeightsError, match=r"writes: config: seed must be a number from 0 to"):
            bundle.read_card(tmp_path)
    del facts[field.partition(".")[0]]
    (tmp_path / bundle.CARD_FILE).write_text(json.dumps(facts))
    if field in ("architecture", "head", "classes", "epoch") or field.startswith(("preprocessing", "data")):
        with pytest.raises(WeightsError, match=f"{field.partition('.')[0]} is missing"):
            bundle.read_card(tmp_path)
    else:
        bundle.read_card(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "mnasnet0_5",
        "regnet_y_400mf",
        "efficientnet_lite0",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "vit_b_32")),
    ],
)
def test_every_kind_of_model_is_restored_unchanged(name: str, tmp_path: Path) -> None:
    classifier = registry.create(name, 3, weights="none", input_size=64)
    saved = card(("a", "b", "c"), name).model_copy(
        update={
            "head": classifier.head,
            "build_options": classifier.build_options,
            "preprocessing": Preprocessing(resize=64, crop=64),
        }
    )
    bundle.save(tmp_path, classifier.model, saved)
    restored, _ = registry.restore(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(restored.model(images), classifier.model.eval()(images))
    warm = registry.create(name, 3, weights=str(tmp_path), classes=("a", "b", "c"), input_size=64)
    assert not warm.head_is_new


def test_a_copy_is_the_same_model_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    saved = bundle.save(tmp_path / "one", trained(), card(("a", "b", "c")))
    bundle.copy(tmp_path / "one", tmp_path / "two")
    for name in (bundle.WEIGHTS_FILE, bundle.CARD_FILE):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert bundle.verified_card(tmp_path / "two") == saved
    os.truncate(tmp_path / "one" / bundle.WEIGHTS_FILE, 1000)
    with pytest.raises(WeightsError, match=f"{bundle.WEIGHTS_FILE} is damaged: its SHA-256 differs"):
        bundle.copy(tmp_path / "one", tmp_path / "three")
    assert not (tmp_path / "three").exists()
    (tmp_path / "one" / bundle.WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=f"cannot read .*{bundle.WEIGHTS_FILE}: No such file"):
        bundle.verified_card(tmp_path / "one")


def test_one_changed_character_of_a_card_is_noticed(tmp_path: Path) -> None:
    bundle.save(tmp_path, trained(), card(("a", "b", "c")))
    path = tmp_path / bundle.CARD_FILE
    path.write_text(path.read_text().replace('"resize": 40', '"resize": 41'))
    with pytest.raises(WeightsError, match="is damaged: it differs from what was written"):
        bundle.read_card(tmp_path)


def test_a_card_of_an_earlier_version_has_no_digests(tmp_path: Path) -> None:
    facts = card(("a", "b", "c"))
    (tmp_path / bundle.CARD_FILE).write_text(facts.model_dump_json(exclude={"weights_sha256"}))
    assert bundle.verified_card(tmp_path) == facts
    with pytest.raises(WeightsError, match="is not a saved model: it has no model.json"):
        bundle.read_card(tmp_path / "elsewhere")


def test_weights_whose_card_was_not_yet_written_are_found_with_the_next_card(tmp_path: Path) -> None:
    """A process killed between its two writes leaves new weights beside the old card and the next one."""
    bundle.save(tmp_path / "new", trained(seed=6), card(("a", "b", "c")))
    bundle.save(tmp_path / "old", trained(seed=5), card(("a", "b", "c")))
    (tmp_path / "new" / bundle.CARD_FILE).rename(tmp_path / "old" / ".model.json.next")
    (tmp_path / "new" / bundle.WEIGHTS_FILE).rename(tmp_path / "old" / bundle.WEIGHTS_FILE)
    found = bundle.verified_card(tmp_path / "old")
    digest = hashlib.sha256((tmp_path / "old" / bundle.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert found.weights_sha256 == digest
