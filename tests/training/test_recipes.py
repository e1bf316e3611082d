import statistics
from dataclasses import replace

import pytest

from tl_cli.data.sizes import Sizes
from tl_cli.errors import UsageError
from tl_cli.training.config import Given
from tl_cli.training.recipes import Facts
from tl_cli.training.resolve import resolve

TINY = Facts("cifar10", 45_000, 5_000, 32, 1, 224, on_gpu=False, bf16=False, cores=2)


PHOTOS = Facts("/photos", 900, 100, None, 1, 224, on_gpu=True, bf16=True, cores=16)


MODEL = {"model": "resnet18"}


def test_the_default_recipe_depends_on_the_data_with_reasons() -> None:
    tiny, photos = (resolve(Given.of(MODEL), facts) for facts in (TINY, PHOTOS))
    assert (tiny.config.input_size, photos.config.input_size) == (96, 224)
    assert (tiny.config.augment, photos.config.augment) == ("flip", "flip-crop")
    assert (tiny.config.precision, photos.config.precision) == ("fp32", "bf16")
    assert (tiny.config.layout, photos.config.layout) == ("channels-last", "channels-last")
    assert photos.config.epochs > tiny.config.epochs
    assert all(origin.why for origin in tiny.origins.values() if origin.source == "recipe")


def test_digits_are_not_mirrored() -> None:
    digits = Facts("digits", 1438, 180, 8, 1, 224, on_gpu=False, bf16=False, cores=2, mirrors=False)
    assert resolve(Given.of(MODEL), digits).config.augment == "shift"


@pytest.mark.parametrize(
    ("changed", "size"),
    [({}, 96), ({"native_size": 8}, 64), ({"native_size": 95}, 96), ({"native_size": 96}, 224), ({"on_gpu": True}, 128),
     ({"smallest_input": 112}, 112), ({"own_input": 64}, 64), ({"native_size": None}, 224)],
)  # fmt: skip
def test_tiny_images_are_enlarged_as_the_machine_allows(changed: dict[str, object], size: int) -> None:
    assert resolve(Given.of(MODEL), replace(TINY, **changed)).config.input_size == size


def sized(*short_sides: int, is_sample: bool = False) -> Facts:
    """Return facts of images of these short sides, each twice as wide."""
    sizes = Sizes.of([(side, 2 * side) for side in short_sides], is_sample=is_sample)
    return replace(TINY, native_size=statistics.median_high(short_sides), sizes=sizes)


@pytest.mark.parametrize(
    ("sides", "size", "reason"),
    [
        ([32] * 447 + [768], 96, "32 to 768 px, median 32"),
        ([28, 31, 33, 40], 96, "28 to 40 px, median 33"),
        ([32] * 8 + [500] * 2, 96, "20% are larger and lose detail, which --input-size 224 keeps"),
        ([32] * 5 + [500] * 5, 224, "50% are under 96 px, for which --input-size 96 is enough"),
        ([500] * 447 + [32], 224, "32 to 500 px, median 500"),
    ],
)
def test_the_input_size_follows_from_the_median_size_and_its_reason_has_the_range(
    sides: list[int], size: int, reason: str
) -> None:
    resolved = resolve(Given.of(MODEL), sized(*sides))
    assert resolved.config.input_size == size
    assert reason in resolved.origins["input_size"].why
    assert (resolved.config.augment == "flip-crop") == (size == 224)
    assert resolve(Given.of({**MODEL, "recipe": "blog"}), sized(*sides)).config.input_size == min(
        statistics.median_high(sides), 224
    )


def test_the_reason_has_no_range_for_images_of_one_size() -> None:
    assert "median" not in resolve(Given.of(MODEL), sized(32, 32)).origins["input_size"].why
    assert "in a sample of 2" in resolve(Given.of(MODEL), sized(30, 32, is_sample=True)).origins["input_size"].why


@pytest.mark.parametrize(("resize", "augment"), [("crop", "flip-crop"), ("squash", "flip"), ("pad", "flip")])
def test_no_random_crops_where_resize_keeps_the_whole_image(resize: str, augment: str) -> None:
    assert resolve(Given.of({**MODEL, "resize": resize}), PHOTOS).config.augment == augment
    given = resolve(Given.of({**MODEL, "resize": resize, "augment": "flip-crop"}), PHOTOS)
    assert (given.config.augment, given.config.resize) == ("flip-crop", resize)


def test_few_tiny_images_are_shifted_too() -> None:
    assert resolve(Given.of(MODEL), replace(TINY, train_images=900)).config.augment == "flip-shift"


def test_the_fast_recipe_is_a_shorter_default() -> None:
    for facts in (TINY, PHOTOS, replace(TINY, train_images=900)):
        default, fast = (resolve(Given.of({**MODEL, "recipe": name}), facts).config for name in ("default", "fast"))
        assert fast.epochs - fast.freeze_epochs < (default.epochs - default.freeze_epochs) * 2 / 3
        changed = {name: value for name, value in fast if getattr(default, name) != value}
        assert set(changed) <= {"recipe", "epochs", "steps"}


def test_the_blog_recipe_has_the_blogs_settings() -> None:
    config = resolve(Given.of({**MODEL, "recipe": "blog"}), TINY).config
    assert (config.epochs, config.freeze_epochs, config.batch_size, config.input_size) == (40, 5, 64, 32)
    assert (config.optimizer, config.lr, config.unfreeze_lr, config.weight_decay) == ("adam", 1e-3, 1e-4, 1e-4)
    assert (config.schedule, config.bn, config.augment, config.feature_cache) == ("plateau", "train", "blog", False)
    assert config.mean == (0.4914, 0.4822, 0.4465)


STAGED = replace(TINY, stages=True)


def test_the_recipe_head_is_one_regression_on_stages() -> None:
    config = resolve(Given.of({**MODEL, "recipe": "head"}), STAGED).config
    assert (config.head_features, config.head_fit) == ("stages", "logistic")
    assert (config.epochs, config.freeze_epochs, config.steps) == (1, 1, None)
    few = resolve(Given.of({**MODEL, "recipe": "head"}), replace(STAGED, train_images=100)).config
    assert (few.epochs, few.freeze_epochs, few.steps) == (1, 1, None)


@pytest.mark.parametrize(
    ("given", "changed"),
    [({"freeze_epochs": 5}, {}), ({"epochs": 5}, {}), ({"lr": 0.01}, {}), ({"feature_cache": False}, {}),
     ({}, {"keeps_head": True, "head_sees_stages": True}), ({}, {"stages": False}), ({"head_fit": "steps"}, {})],
)  # fmt: skip
def test_the_recipe_head_trains_in_steps_where_a_setting_needs_them(
    given: dict[str, object], changed: dict[str, object]
) -> None:
    resolved = resolve(Given.of({**MODEL, "recipe": "head", **given}), replace(STAGED, **changed))
    assert resolved.config.head_fit == "steps"
    assert (resolved.config.epochs, resolved.config.freeze_epochs) == (5, 5)
    assert resolved.config.head_features == ("last" if "stages" in changed else "stages")
    if "head_fit" not in given:
        assert resolved.origins["head_fit"].why


@pytest.mark.parametrize("recipe", ["default", "head"])
def test_a_kept_head_sees_what_it_saw(recipe: str) -> None:
    for sees, expected in ((False, "last"), (True, "stages")):
        facts = replace(STAGED, keeps_head=True, head_sees_stages=sees)
        config = resolve(Given.of({**MODEL, "recipe": recipe}), facts).config
        assert (config.head_features, config.head_fit) == (expected, "steps")


@pytest.mark.parametrize(
    ("given", "message"),
    [({"freeze_epochs": 0}, "trains only the head"), ({"steps": 9}, "takes --epochs, not --steps"),
     ({"early_stop": 2}, "--early-stop has no effect")],
)  # fmt: skip
def test_the_recipe_head_refuses_what_it_cannot_do(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Given.of({**MODEL, "recipe": "head", **given}), STAGED)


def test_a_single_epoch_of_regression_is_frozen() -> None:
    config = resolve(Given.of({**MODEL, "head_fit": "logistic", "epochs": 1}), STAGED).config
    assert (config.epochs, config.freeze_epochs, config.head_fit) == (1, 1, "logistic")


def test_a_regression_before_fine_tuning_takes_one_epoch() -> None:
    config = resolve(Given.of({**MODEL, "head_fit": "logistic"}), STAGED).config
    steps = resolve(Given.of(MODEL), STAGED).config
    assert (config.freeze_epochs, config.head_features) == (1, "last")
    assert config.epochs - 1 == steps.epochs - 5
    few = resolve(Given.of({**MODEL, "head_fit": "logistic"}), replace(STAGED, train_images=180)).config
    # 180 images are 3 steps per epoch.
    assert (few.steps, few.epochs) == (1 + 250, 1 + 84)


@pytest.mark.parametrize(
    ("given", "val_images", "kept"),
    [({}, 100, "last"), ({}, 5000, "best"), ({"early_stop": 3}, 100, "best"), ({"schedule": "plateau"}, 100, "best"),
     ({"schedule": "cosine"}, 100, "last"), ({"keep_epoch": "best"}, 100, "best")],
)  # fmt: skip
def test_few_validation_images_do_not_choose_an_epoch(given: dict[str, object], val_images: int, kept: str) -> None:
    facts = replace(TINY, val_images=val_images)
    assert resolve(Given.of({**MODEL, **given}), facts).config.keep_epoch == kept
