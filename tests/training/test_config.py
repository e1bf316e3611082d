import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tl_cli.data.sizes import Sizes
from tl_cli.errors import UsageError
from tl_cli.training.config import Given, read_toml, validated
from tl_cli.training.recipes import Facts
from tl_cli.training.resolve import resolve
from tl_cli.training.state import write_toml

TINY = Facts("cifar10", 45_000, 32, 1, 224, on_gpu=False, bf16=False, cores=2)
PHOTOS = Facts("/photos", 900, None, 1, 224, on_gpu=True, bf16=True, cores=16)
MODEL = {"model": "resnet18"}


def test_flags_beat_the_file_and_the_file_beats_the_recipe() -> None:
    resolved = resolve(Given.of({**MODEL, "lr": 0.5}, {"lr": 0.1, "epochs": 7, "freeze_epochs": 2}), TINY)
    assert resolved.config.lr == 0.5
    assert resolved.config.epochs == 7
    assert [resolved.origins[name].source for name in ("lr", "epochs", "optimizer", "momentum")] == [
        "flag", "config file", "recipe", "default",
    ]  # fmt: skip


def test_the_default_recipe_depends_on_the_data_and_says_why() -> None:
    tiny, photos = (resolve(Given.of(MODEL), facts) for facts in (TINY, PHOTOS))
    assert (tiny.config.input_size, photos.config.input_size) == (96, 224)
    assert (tiny.config.augment, photos.config.augment) == ("flip", "flip-crop")
    assert (tiny.config.precision, photos.config.precision) == ("fp32", "bf16")
    assert (tiny.config.layout, photos.config.layout) == ("channels-last", "channels-last")
    assert photos.config.epochs > tiny.config.epochs
    assert all(origin.why for origin in tiny.origins.values() if origin.source == "recipe")


def test_digits_are_not_mirrored() -> None:
    digits = Facts("digits", 1438, 8, 1, 224, on_gpu=False, bf16=False, cores=2, mirrors=False)
    assert resolve(Given.of(MODEL), digits).config.augment == "shift"


@pytest.mark.parametrize(
    ("changed", "size"),
    [({}, 96), ({"native_size": 8}, 64), ({"native_size": 95}, 96), ({"native_size": 96}, 224), ({"on_gpu": True}, 128),
     ({"smallest_input": 112}, 112), ({"own_input": 64}, 64), ({"native_size": None}, 224)],
)  # fmt: skip
def test_tiny_images_are_enlarged_as_far_as_the_machine_affords(changed: dict[str, object], size: int) -> None:
    assert resolve(Given.of(MODEL), replace(TINY, **changed)).config.input_size == size


def sized(*short_sides: int, is_sample: bool = False) -> Facts:
    """Return facts of images of these short sides, each twice as wide."""
    sizes = Sizes.of([(side, 2 * side) for side in short_sides], is_sample=is_sample)
    return replace(TINY, native_size=statistics.median_high(short_sides), sizes=sizes)


@pytest.mark.parametrize(
    ("sides", "size", "said"),
    [
        ([32] * 447 + [768], 96, "32 to 768 px, median 32"),
        ([28, 31, 33, 40], 96, "28 to 40 px, median 33"),
        ([32] * 8 + [500] * 2, 96, "20% are larger and lose detail, which --input-size 224 keeps"),
        ([32] * 5 + [500] * 5, 224, "50% are under 96 px, for which --input-size 96 is enough"),
        ([500] * 447 + [32], 224, "32 to 500 px, median 500"),
    ],
)
def test_the_median_size_decides_and_the_reason_says_so(sides: list[int], size: int, said: str) -> None:
    resolved = resolve(Given.of(MODEL), sized(*sides))
    assert resolved.config.input_size == size
    assert said in resolved.origins["input_size"].why
    assert (resolved.config.augment == "flip-crop") == (size == 224)
    assert resolve(Given.of({**MODEL, "recipe": "blog"}), sized(*sides)).config.input_size == min(
        statistics.median_high(sides), 224
    )


def test_images_of_one_size_need_no_words_about_it() -> None:
    assert "median" not in resolve(Given.of(MODEL), sized(32, 32)).origins["input_size"].why
    assert "in a sample of 2" in resolve(Given.of(MODEL), sized(30, 32, is_sample=True)).origins["input_size"].why


@pytest.mark.parametrize(("resize", "augment"), [("crop", "flip-crop"), ("squash", "flip"), ("pad", "flip")])
def test_random_crops_do_not_cut_off_what_is_to_be_kept(resize: str, augment: str) -> None:
    assert resolve(Given.of({**MODEL, "resize": resize}), PHOTOS).config.augment == augment
    given = resolve(Given.of({**MODEL, "resize": resize, "augment": "flip-crop"}), PHOTOS)
    assert (given.config.augment, given.config.resize) == ("flip-crop", resize)


def test_few_tiny_images_are_moved_too_since_they_are_seen_often() -> None:
    assert resolve(Given.of(MODEL), replace(TINY, train_images=900)).config.augment == "flip-shift"


def test_the_fast_recipe_is_the_default_one_but_shorter() -> None:
    for facts in (TINY, PHOTOS, replace(TINY, train_images=900)):
        default, fast = (resolve(Given.of({**MODEL, "recipe": name}), facts).config for name in ("default", "fast"))
        assert fast.epochs - fast.freeze_epochs < (default.epochs - default.freeze_epochs) * 2 / 3
        changed = {name: value for name, value in fast if getattr(default, name) != value}
        assert set(changed) <= {"recipe", "epochs", "steps"}


def test_the_blog_recipe_is_the_blogs() -> None:
    config = resolve(Given.of({**MODEL, "recipe": "blog"}), TINY).config
    assert (config.epochs, config.freeze_epochs, config.batch_size, config.input_size) == (40, 5, 64, 32)
    assert (config.optimizer, config.lr, config.unfreeze_lr, config.weight_decay) == ("adam", 1e-3, 1e-4, 1e-4)
    assert (config.schedule, config.bn, config.augment, config.feature_cache) == ("plateau", "train", "blog", False)
    assert config.mean == (0.4914, 0.4822, 0.4465)


def test_epochs_given_alone_leave_room_for_both_phases() -> None:
    config = resolve(Given.of({**MODEL, "epochs": 4}), TINY).config
    assert (config.freeze_epochs, config.epochs) == (2, 4)


def test_nothing_frozen_means_one_rate() -> None:
    assert resolve(Given.of({**MODEL, "freeze_epochs": 0, "lr": 0.02}), TINY).config.unfreeze_lr == 0.02
    config = resolve(Given.of({**MODEL, "freeze_epochs": 0}), TINY).config
    assert config.lr == config.unfreeze_lr == 6e-4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"epochs": 3, "freeze_epochs": 5}, "--epochs 3 is the total and cannot be fewer than --freeze-epochs 5"),
        ({"freeze_epochs": 0, "unfreeze_lr": 0.1}, "nothing is unfrozen"),
        ({"epochs": 5, "freeze_epochs": 5, "unfreeze_lr": 0.1}, "all 5 epochs are frozen"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"optimizer": "lion"}, "--optimizer lion"),
        ({"resize": "stretch"}, "--resize stretch"),
        ({"std": (1.0, 0.0, 1.0)}, "--std must be positive"),
        ({"recipe": "blgo"}, "--recipe blgo: Input should be"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
    ],
)
def test_bad_settings_are_refused_by_their_flags_name(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(Given.of({**MODEL, **flags}), TINY)


def test_a_config_survives_the_trip_through_toml(tmp_path: Path) -> None:
    config = resolve(Given.of({**MODEL, "data": 'a "b"\\c/é', "recipe": "blog"}), TINY).config
    write_toml(tmp_path / "c.toml", config)
    assert validated(read_toml(tmp_path / "c.toml")) == config


def test_a_kept_config_names_the_steps_and_not_the_epochs_that_follow(tmp_path: Path) -> None:
    config = resolve(Given.of({**MODEL, "steps": 9000}), TINY).config
    write_toml(tmp_path / "c.toml", config)
    kept = read_toml(tmp_path / "c.toml")
    assert "epochs" not in kept
    assert resolve(Given.of({}, kept), TINY).config == config
    with pytest.raises(UsageError, match="give one of them"):
        resolve(Given.of({}, {**kept, "epochs": 40}), TINY)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_config_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    text = 'model = "resnet18"\r\ndata = "Fotos für Anna"\r\n'
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "c.toml").write_bytes((mark + text).encode(encoding))
    assert read_toml(tmp_path / "c.toml") == {"model": "resnet18", "data": "Fotos für Anna"}


def test_an_unknown_setting_gets_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("freeze-epoch = 3\n")
    with pytest.raises(UsageError, match="unknown setting 'freeze_epoch'. Did you mean freeze_epochs"):
        read_toml(tmp_path / "c.toml")


@pytest.mark.parametrize("content", ["lr = ", "\xff"])
def test_what_is_no_toml_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"c\.toml"):
        read_toml(tmp_path / "c.toml")
