import gc
import os
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from tests.support.training import plan_for, run
from tl_cli.data.batches import Loader
from tl_cli.errors import DivergedError, UsageError
from tl_cli.io.download import cache_root
from tl_cli.models.zoo import registry
from tl_cli.training import cached_features
from tl_cli.training import plan as setup
from tl_cli.training.cached_features import CachedFeatures, CacheLimits
from tl_cli.training.events import EpochEnded, Event, LossSampled, Noticed, PhaseStarted, StepEnded, Worked
from tl_cli.training.fit import fit
from tl_cli.training.plan import with_caches

ANY_GAIN = CacheLimits(least_gain=1.0)
ON_DISK = CacheLimits(memory_share=0.0)
FP32 = {"feature_dtype": "fp32", "log_every": 1}


def losses(plan: setup.Plan) -> tuple[list[float], list[float]]:
    """Return losses by step and validation losses by epoch."""
    events, _ = run(plan)
    steps = [event.loss for event in events if isinstance(event, LossSampled)]
    return steps, [event.val_loss for event in events if isinstance(event, EpochEnded)]


def scan_all(plan: setup.Plan) -> list[PhaseStarted]:
    events, _ = run(plan)
    return [event for event in events if isinstance(event, PhaseStarted)]


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2, "freeze_epochs": 2},
        {"epochs": 7, "freeze_epochs": 1, "freeze_until": "conv5", "bn": "train", "dropout": 0.3, "batch_size": 6},
        {"epochs": 12, "freeze_epochs": 0, "unfreeze_stages": 2, "bn": "train", "limit": 24, "lr": 0.0002,
         "batch_size": 18},
        {"epochs": 2, "freeze_epochs": 2, "sampler": "balanced", "model": "squeezenet1_1", "input_size": 64},
    ],
)  # fmt: skip
def test_training_on_fp32_features_equals_training_on_images_to_rounding(
    colours: Path, settings: dict[str, object], augment: str
) -> None:
    weights = {"weights": str(saved()), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    if "freeze_until" not in settings:
        weights = {"weights": "none"}
    plans = [
        plan_for(colours, **cache, **{"val_fraction": 0.25, **settings}, augment=augment, log_every=1, **weights)
        for cache in ({"feature_dtype": "fp32"}, {"feature_cache": False})
    ]
    plans[0] = with_caches(plans[0], ANY_GAIN)
    assert len(plans[0].cached) == (
        1 if settings["epochs"] == settings["freeze_epochs"] or "unfreeze_stages" in settings else 2
    )
    assert not plans[1].cached
    (steps, validated), (expected_steps, expected_validated) = map(losses, plans)
    assert len(steps) > 4
    assert steps == pytest.approx(expected_steps, rel=1e-2, abs=1e-3)
    assert validated == pytest.approx(expected_validated, rel=1e-2, abs=1e-3)


def saved() -> Path:
    """A file of weights, as layers with random weights may not stay frozen."""
    path = cache_root() / "weights.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(registry.create("shufflenet_v2_x0_5", 1000, weights="none", seed=3).model.state_dict(), path)
    return path


def test_layers_that_stay_frozen_are_cached_too(colours: Path) -> None:
    settings = {"epochs": 7, "freeze_epochs": 1, "freeze_until": "conv5", "weights": str(saved())}
    plan = plan_for(colours, **settings, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    phases = scan_all(plan)
    assert [phase.cached for phase in phases] == [True, True]
    tune = plan.cached[2]
    assert tune.cut.after == "stage4.3"
    assert tune.gain > CacheLimits().least_gain


def test_a_phase_that_gains_too_little_trains_on_images_with_a_note(colours: Path) -> None:
    plan = plan_for(colours, epochs=4, freeze_epochs=1, freeze_until="stage2", weights=str(saved()),
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip
    assert list(plan.cached) == [1]
    assert any("fine-tune trains on images" in note and "times faster" in note for note in plan.cache_notes)


@pytest.mark.parametrize(
    ("augment", "epochs", "is_cached"),
    [("flip", 7, True), ("none", 7, True), ("flip-shift", 7, False), ("flip", 3, False)],
)
def test_a_small_gain_is_taken_where_the_cached_views_are_all_that_training_sees(
    colours: Path, augment: str, epochs: int, is_cached: bool
) -> None:
    """Three epochs see two views of an image; one of the three is the head's."""
    plan = plan_for(colours, epochs=epochs, freeze_epochs=1, freeze_until="stage3", weights=str(saved()), augment=augment,
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip
    assert (2 in plan.cached) is is_cached
    if is_cached:
        assert 1.02 < plan.cached[2].gain < 1.5


def test_mixing_and_erasing_train_on_images(colours: Path) -> None:
    plan = plan_for(colours, epochs=4, freeze_epochs=1, freeze_until="conv5", weights=str(saved()), mixup=0.2,
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip
    assert list(plan.cached) == [1]
    assert any("MixUp need images" in note for note in plan.cache_notes)


@pytest.mark.slow
@pytest.mark.parametrize(("views", "epochs", "expected"), [
    ("plain", 3, ("plain",)), ("flip", 3, ("plain", "mirrored")), ("flip", 1, ("plain",)), ("4", 9, (1, 2, 3, 4)),
    ("9", 2, (1, 2)),
])  # fmt: skip
def test_views_are_at_most_one_per_epoch(colours: Path, views: str, epochs: int, expected: object) -> None:
    plan = plan_for(colours, feature_views=views, epochs=epochs, freeze_epochs=epochs)
    assert plan.cached[1].views == expected


@pytest.mark.parametrize("bad", ["0", "-1", "many", "100"])
def test_invalid_feature_views_are_refused(colours: Path, bad: str) -> None:
    with pytest.raises(UsageError, match="feature-views"):
        plan_for(colours, feature_views=bad)


def test_augmented_view_n_equals_the_augmentation_of_epoch_n(colours: Path) -> None:
    plan = plan_for(colours, **FP32, feature_views="3", augment="flip-shift", epochs=3, freeze_epochs=3, input_size=64)
    cached = plan.cached[1]
    loader = plan.loader(plan.data.parts["train"])
    plan.strategy.freeze_for(plan.phases[0])
    tensors, _ = cached_features.Cache(cached, plan.machine).features(
        loader, cached.views, plan.augmentation, plan.config.seed, lambda done: None
    )
    assert len(tensors) == 3
    assert not torch.equal(tensors[0], tensors[1])
    for epoch, view in enumerate(tensors, 1):
        for indices, images in loader.augmented(plan.augmentation, plan.config.seed, epoch):
            with torch.inference_mode():
                expected = cached.cut.prefix(loader._batch(indices, images).inputs)
            torch.testing.assert_close(view[torch.from_numpy(indices)], expected, rtol=1e-4, atol=1e-5)
            break
    batches = CachedFeatures(tensors, torch.from_numpy(loader.images.labels), 8, 8, torch.device("cpu"))
    drawn = torch.cat([batch.inputs for batch in batches.train(0, 1)])
    among = [(drawn[:, None] == view[None]).all(-1).any() for view in tensors]
    assert all(among)


def test_a_later_run_reuses_the_features(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(plan_for(colours, epochs=2, freeze_epochs=2))
    monkeypatch.setattr(Loader, "clean", fail_if_called)
    again = run(plan_for(colours, epochs=2, freeze_epochs=2, lr=0.01))
    found = [[e.reused for e in events if isinstance(e, PhaseStarted)] for events, _ in (first, again)]
    assert found == [[False], [True]]
    assert torch.equal(first[1].model.fc.weight, again[1].model.fc.weight)


def fail_if_called(*arguments: object, **more: object) -> None:
    raise AssertionError("no image should be read")


def stored_files() -> set[str]:
    return {path.stem for path in (cache_root() / "features").glob("*.npy")}


@pytest.mark.slow
def test_other_weights_images_sizes_and_precisions_use_separate_features(colours: Path, tmp_path: Path) -> None:
    def new(**settings: object) -> int:
        before = stored_files()
        run(plan_for(**{"data": colours, "epochs": 2, "freeze_epochs": 2, **settings}))
        return len(stored_files() - before)

    assert new() == 3  # plain and mirrored training images, validation
    assert new(lr=0.1, batch_size=16, seed=0) == 0
    assert new(augment="none") == 0
    assert new(input_size=48) == 3
    assert new(feature_dtype="fp32") == 3
    assert new(mean=(0.1, 0.2, 0.3)) == 3
    assert new(seed=5) == 3  # other random weights
    assert new(precision="bf16") == 3
    assert new(split_seed=1) == 3
    assert new(feature_views="2", augment="flip-shift") == 2  # validation is the same
    assert new(feature_views="2", augment="flip-crop") == 2


@pytest.mark.slow
def test_features_computed_by_code_for_another_processor_are_not_used(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new() -> int:
        before = stored_files()
        run(plan_for(colours, epochs=1, device="cpu"))
        return len(stored_files() - before)

    assert new() == 2  # training and validation images
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert new() == 2
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "of another processor")
    assert new() == 2
    assert new() == 0


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_features_of_an_image_changed_in_place_are_recomputed(colours: Path, tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(colours, folder)
    if not packed:
        Image.new("RGB", (48, 40)).save(folder / "train" / "red" / "wide.png")

    def found() -> bool:
        events, _ = run(plan_for(folder, epochs=2, freeze_epochs=2))
        return next(event for event in events if isinstance(event, PhaseStarted)).reused

    assert [found(), found()] == [False, True]
    for picture in (folder / "train" / "blue").iterdir():
        with Image.open(picture) as image:
            ImageOps.invert(image).save(picture)
    assert not found()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip a bit", "cut", "no manifest", "other shape"])
def test_damaged_features_are_recomputed(colours: Path, damage: str) -> None:
    settings = {"epochs": 2, "freeze_epochs": 2}
    first = run(plan_for(colours, **settings))[1].model.fc.weight
    path = max((cache_root() / "features").glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if damage == "flip a bit":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no manifest":
        path.with_suffix(".json").unlink()
    else:
        np.save(path, np.zeros((2, 2), np.float16))
    events, state = run(plan_for(colours, **settings))
    assert not next(event for event in events if isinstance(event, PhaseStarted)).reused
    # Features without a manifest are incomplete.
    notices = [str(path) in event.message for event in events if isinstance(event, Noticed)]
    assert notices == ([] if damage == "no manifest" else [True])
    assert torch.equal(state.model.fc.weight, first)
    assert next(e for e in run(plan_for(colours, **settings))[0] if isinstance(e, PhaseStarted)).reused


def test_features_larger_than_memory_are_read_from_disk(colours: Path) -> None:
    settings = {"epochs": 2, "freeze_epochs": 2}
    in_memory = run(plan_for(colours, **settings))[1].model.fc.weight
    plan = with_caches(plan_for(colours, **settings, feature_dtype="fp16"), ON_DISK)
    assert not plan.cached[1].in_memory
    assert "in a file" in plan.cached[1].describe()
    assert torch.equal(run(plan)[1].model.fc.weight, in_memory)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "fill with NaN", "truncate all but the validation images"])
def test_features_damaged_while_in_use_are_recomputed_with_a_notice(colours: Path, damage: str) -> None:
    settings = {"epochs": 3, "freeze_epochs": 3, "val_fraction": 0.25}
    undamaged = run(with_caches(plan_for(colours, **settings), ON_DISK))[1].model.fc.weight
    plan = with_caches(plan_for(colours, **settings), ON_DISK)
    state, messages, damaged = setup.new_state(plan), list[str](), set[str]()

    def observe(event: Event) -> None:
        if isinstance(event, Noticed):
            messages.append(event.message)
        if not (isinstance(event, StepEnded) and event.step == 2):
            return
        files = sorted((cache_root() / "features").glob("*.npy"), key=lambda path: path.stat().st_size)
        assert len(files) == 3
        for path in files[1:] if "all but" in damage else files:
            damaged.add(str(path))
            size = path.stat().st_size
            if damage.startswith("truncate"):
                os.truncate(path, 150)
            else:
                with path.open("r+b") as file:
                    file.seek(128)
                    file.write(np.full((size - 128) // 2, np.nan, np.float16).tobytes())

    fit(plan, state, observe)
    assert torch.equal(state.model.fc.weight, undamaged)
    assert len(messages) == len(damaged)
    assert all(any(path in message for message in messages) for path in damaged)


def test_features_on_disk_move_to_a_device_with_enough_memory(colours: Path) -> None:
    plan = plan_for(colours, epochs=2, freeze_epochs=2)
    in_memory = cached_tensors(plan)
    on_disk = cached_tensors(with_caches(plan_for(colours, epochs=2, freeze_epochs=2), ON_DISK))
    for one, other in zip(in_memory, on_disk, strict=True):
        assert isinstance(other, cached_features.DiskView)
        assert (other.shape, other.dtype, other.nbytes) == (one.shape, one.dtype, one.nbytes)
        assert torch.equal(other.to(torch.device("cpu"), rows_per_copy=7), one)
        assert torch.equal(other[3:9], one[3:9])
        assert torch.equal(other[40:90], one[40:90])


def cached_tensors(plan: setup.Plan) -> tuple[torch.Tensor | cached_features.DiskView, ...]:
    plan.strategy.freeze_for(plan.phases[0])
    cached = plan.cached[1]
    loader = plan.loader(plan.data.parts["train"])
    return cached_features.Cache(cached, plan.machine).features(
        loader, cached.views, plan.augmentation, 0, lambda done: None
    )[0]


def test_without_memory_and_disk_the_reason_is_stated(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", "/proc/nowhere")
    plan = with_caches(plan_for(colours, epochs=2, freeze_epochs=2), ON_DISK)
    assert not plan.cached
    assert "GB of disk" in plan.cache_notes[0]
    assert [phase.cached for phase in scan_all(plan)] == [False]


@pytest.mark.slow
def test_features_of_images_that_changed_meanwhile_are_not_stored(odd_pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "odd"
    shutil.copytree(odd_pictures, data)
    settings = {"epochs": 1, "freeze_epochs": 1, "batch_size": 16}
    plan = plan_for(data, **settings)
    assert plan.cached
    path = data / "train/red/0.png"
    whole = path.read_bytes()
    Image.new("RGB", (1, 1)).save(path)
    run(plan)
    path.write_bytes(whole)
    assert not any(event.reused for event in scan_all(plan_for(data, **settings)))
    # No image has changed this time.
    assert all(event.reused for event in scan_all(plan_for(data, **settings)))


def test_training_works_without_a_writable_cache(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", "/proc/nowhere")
    assert [phase.cached for phase in scan_all(plan_for(colours, epochs=2, freeze_epochs=2))] == [True]


def test_progress_counts_every_view_and_the_validation_images(colours: Path) -> None:
    plan = plan_for(colours, epochs=2, freeze_epochs=2)
    events, _ = run(plan)
    worked = [event for event in events if isinstance(event, Worked) and event.activity == "caching features"]
    train, val = (len(plan.data.parts[part]) for part in ("train", "val"))
    assert {event.total for event in worked} == {2 * train + val}
    assert [event.done for event in worked] == sorted(event.done for event in worked)
    assert worked[-1].done == worked[-1].total


@pytest.mark.slow
def test_half_precision_features_cost_little_accuracy(colours: Path) -> None:
    ends = [losses(plan_for(colours, feature_dtype=dtype, epochs=2, freeze_epochs=2))[1] for dtype in ("fp16", "fp32")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)


def test_features_that_overflow_half_precision_are_an_error(colours: Path) -> None:
    plan = plan_for(colours, epochs=1)
    with torch.no_grad():
        plan.classifier.model.conv5[1].weight.mul_(1e30)
    with pytest.raises(DivergedError, match="--feature-dtype fp32"):
        run(plan)


def test_training_on_features_changes_the_tail_only(colours: Path) -> None:
    plan = plan_for(colours, epochs=7, freeze_epochs=1, freeze_until="conv5", weights=str(saved()),
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), bn="train")  # fmt: skip
    before = {key: value.clone() for key, value in plan.classifier.model.state_dict().items()}
    run(plan)
    changed = {key for key, value in plan.classifier.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith(("conv5", "fc"))}


def test_the_digest_covers_all_parameters_and_buffers() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    same, other, moved, strided = network(), network(), network(), network()
    assert cached_features._digest(network()) == cached_features._digest(same)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
        moved[1].running_var[0] += 1e-6
    strided[0].stride = (2, 2)
    assert len({cached_features._digest(each) for each in (same, other, moved, strided)}) == 4


@pytest.mark.slow
def test_feature_maps_are_validated_in_batches_of_image_size(colours: Path) -> None:
    plan = plan_for(colours, epochs=7, freeze_epochs=1, freeze_until="conv5", weights=str(saved()), input_size=64,
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), limit=12)  # fmt: skip
    maps = CachedFeatures((torch.zeros(9, 4, 2, 2),), torch.zeros(9).long(), 2, 4, torch.device("cpu"))
    assert [len(batch.labels) for batch in maps.clean()] == [4, 4, 1]
    sizes = []
    for phase in plan.phases:
        stage = setup.open_phase(plan, phase, lambda event: None)
        sizes.append(stage.validation.func.__self__.clean_batch)  # type: ignore[attr-defined]
    assert sizes == [4096, plan.loader(plan.data.parts["val"]).batch_size]


def test_batches_may_be_modified_in_place() -> None:
    features = torch.ones(4, 3)
    features_of = CachedFeatures((features,), torch.zeros(4).long(), 2, 2, torch.device("cpu"))
    for batch in (*features_of.clean(), *features_of.train(0, 1)):
        batch.inputs.zero_()
    assert bool((features == 1).all())


def test_a_run_begun_on_features_cannot_resume_without_them(colours: Path, tmp_path: Path) -> None:
    plan = plan_for(colours, epochs=2, freeze_epochs=2)
    (tmp_path / "step-00000001.ckpt").write_bytes(setup.new_state(plan).to_bytes())
    assert setup.new_state(plan).restore(tmp_path) == []
    other = setup.new_state(plan_for(colours, epochs=2, freeze_epochs=2, feature_cache=False))
    with pytest.raises(UsageError, match="cached features"):
        other.restore(tmp_path)


@pytest.mark.slow
def test_the_features_of_a_stage_are_freed_before_the_next_are_computed(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    seen: list[weakref.ref[torch.Tensor]] = []
    on_device = cached_features.on_device

    def counted(views: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(views[0]))
        return on_device(views, device)

    monkeypatch.setattr(cached_features, "on_device", counted)
    plan = plan_for(colours, epochs=14, freeze_epochs=2, unfreeze_stages=2, bn="frozen", limit=12, batch_size=12)
    run(with_caches(plan, ANY_GAIN))
    # Training and validation features of two phases.
    assert alive == [0, 1, 0, 1]


def test_two_runs_may_compute_the_same_features_concurrently(colours: Path) -> None:
    # Tracing a network affects the whole process, so it is done before the threads, which represent two runs, start.
    plans = [with_caches(plan_for(colours, epochs=2, freeze_epochs=2), ON_DISK) for _ in range(2)]
    failed: list[BaseException] = []

    def one(plan: setup.Plan) -> None:
        try:
            run(plan)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_an_unwritable_cache_is_not_planned_for(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", "/dev/null/cache")
    assert not with_caches(plan_for(colours, epochs=2, freeze_epochs=2), ON_DISK).cached
