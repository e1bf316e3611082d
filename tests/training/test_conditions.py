import pytest

from tests.support.commands import Result
from tl_cli.contract import DataSpec, ModelCard, Preprocessing, Split, WeightsTag
from tl_cli.training.conditions import are_digests_comparable, conditions, random_backbone
from tl_cli.training.config import TrainConfig

SETTINGS: dict[str, object] = {
    "model": "resnet18", "epochs": 6, "freeze_epochs": 2, "optimizer": "adamw", "lr": 1e-3, "unfreeze_lr": 6e-4,
    "weight_decay": 0.01, "schedule": "one-cycle", "bn": "train", "augment": "flip", "input_size": 64,
}  # fmt: skip


def card(settings: dict[str, object], *, weights: str = "torchvision:x", digest: str = "a" * 16) -> ModelCard:
    return ModelCard(
        architecture="resnet18",
        head=("fc",),
        classes=("ant", "bee"),
        preprocessing=Preprocessing(resize=64, crop=64),
        weights=WeightsTag(name=weights),
        data=DataSpec(source="here", layout="train/test", splits={"train": Split(count=1000, digest=digest)}),
        recipe="default",
        config=settings,
        epoch=6,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 9), ("input_size", 96), ("augment", "none"), ("recipe", "blog"), ("seed", 1), ("mixup", 0.2), ("lr", 0.1)],
)  # fmt: skip
def test_settings_that_affect_the_result_are_conditions(name: str, value: object) -> None:
    one, other = (
        conditions(card(TrainConfig.checked(each).model_dump())) for each in (SETTINGS, {**SETTINGS, name: value})
    )
    assert one is not None
    assert other is not None
    assert {key for key in one if one[key] != other[key]} == {name.replace("_", "-")}


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", 7), ("threads", 3), ("device", "cpu"), ("precision", "bf16"), ("log_every", 5), ("data", "elsewhere")],
)
def test_machine_settings_are_not_conditions(name: str, value: object) -> None:
    one, other = (
        conditions(card(TrainConfig.checked(each).model_dump())) for each in (SETTINGS, {**SETTINGS, name: value})
    )
    assert one == other


def test_images_are_compared_by_content_and_weights_by_kind() -> None:
    settings = TrainConfig.checked(SETTINGS).model_dump()
    recorded = conditions(card(settings))
    assert recorded is not None
    assert (recorded["train images"], recorded["val images"]) == ("1,000 (aaaaaaaa)", "unknown")
    assert recorded["weights"] == "pretrained (torchvision:x)"
    assert conditions(card(settings, digest="b" * 16)) == recorded | {"train images": "1,000 (bbbbbbbb)"}
    assert conditions(card(settings, weights="none")) == recorded | {"weights": "random"}
    assert conditions(card(settings, weights="saved:best")) == recorded | {"weights": "saved:best ()"}


def with_splits(**splits: Split) -> ModelCard:
    made = card(TrainConfig.checked(SETTINGS).model_dump())
    return made.model_copy(update={"data": made.data.model_copy(update={"splits": splits})})


def test_digests_of_different_schemes_are_not_compared() -> None:
    old, new, other = (
        with_splits(train=Split(count=count, digest=digest * 64, scheme=scheme), val=Split(count=9, digest="f" * 64))
        for count, digest, scheme in ((1000, "a", "lengths"), (1000, "b", "contents"), (900, "c", "contents"))
    )
    assert not are_digests_comparable([old, new])
    assert are_digests_comparable([new, other])
    assert are_digests_comparable([old, old])
    # Images without files have one digest in both schemes.
    assert are_digests_comparable([old, with_splits(train=Split(count=1000, digest="a" * 64, scheme="contents"))])
    described = [conditions(each, with_digests=False) for each in (old, new, other)]
    assert described[0] == described[1]
    assert [each["train images"] for each in described if each] == ["1,000", "1,000", "900"]


def test_a_setting_missing_in_an_old_model_has_its_default() -> None:
    settings = TrainConfig.checked(SETTINGS).model_dump()
    old = {name: value for name, value in settings.items() if name not in ("mixup", "sampler", "steps")}
    assert conditions(card(old)) == conditions(card(settings))
    assert conditions(card({})) is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["stays frozen for 2 epochs: the head learns from random features"]),
        ({"freeze_epochs": 1}, ["stays frozen for 1 epoch: "]),
        ({"freeze_epochs": 6}, ["stays frozen for 6 epochs, the whole run: "]),
        ({"freeze_epochs": 0}, []),
        ({"freeze_epochs": 0, "unfreeze_stages": 3}, ["--unfreeze-stages 3 keeps its lower layers frozen"]),
        ({"freeze_epochs": 0, "bn": "frozen"}, ["use --bn train"]),
        ({"freeze_epochs": 6, "bn": "frozen"}, ["the whole run"]),
        ({"weights": "default"}, []),
    ],
)
def test_random_frozen_layers_cause_a_warning(changed: dict[str, object], expected: list[str]) -> None:
    warnings = random_backbone(TrainConfig.checked({**SETTINGS, "weights": "none", **changed}))
    assert len(warnings) == len(expected)
    assert all(part in message for part, message in zip(expected, warnings, strict=True))


def test_a_dry_run_warns_about_a_frozen_random_backbone(tl, colours) -> None:
    options = ("train", "timm/test_resnet", "--weights", "none", "--input-size", "32", "--data", colours, "--dry-run")
    warned: Result = tl(*options, "--epochs", "3", "--freeze-epochs", "2")
    assert warned.code == 0
    assert "the backbone has random weights and stays frozen for 2 epochs" in " ".join(warned.err.split())
    assert "random features" not in tl(*options).err
