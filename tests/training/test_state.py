"""Files of a run are complete, or their damage is detected."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.full_disk import largest_file
from tests.support.training import SMALL, plan_for, state_digest
from tl_cli.errors import DivergedError, StorageError, UsageError, WeightsError
from tl_cli.models import bundle
from tl_cli.models.zoo import registry
from tl_cli.training import plan as setup
from tl_cli.training.events import EpochEnded, Event, StepEnded
from tl_cli.training.fit import _should_stop_early, fit
from tl_cli.training.plan import new_state
from tl_cli.training.state import BEST_FOLDER, Every, Saver, checkpoints


def test_checkpoints_follow_the_interval_and_two_are_kept(odd_pictures: Path, tmp_path: Path) -> None:
    plan = plan_for(odd_pictures, model=SMALL, epochs=4, freeze_epochs=2, batch_size=8)
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card(), Every.parse("4"))
    seen: list[list[str]] = []

    def observe(event: Event) -> None:
        saver(event)
        if isinstance(event, StepEnded | EpochEnded):
            seen.append([path.name for path in checkpoints(tmp_path)])

    fit(plan, state, observe)
    assert [f"step-{step:08d}.ckpt" for step in (4, 6, 8, 12, 16, 18, 20, 24)] == sorted(
        {n for names in seen for n in names}
    )
    assert all(len(names) <= 2 for names in seen)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("text", "every"), [("200", Every(200)), ("5m", Every(0, 300)), ("30s", Every(0, 30)), ("0", Every())]
)
def test_the_interval_is_in_steps_or_time(text: str, every: Every) -> None:
    assert Every.parse(text) == every
    with pytest.raises(UsageError, match="neither steps"):
        Every.parse("often")


@pytest.fixture(scope="module")
def saved_run(odd_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[setup.Plan, Path]:
    """A run with two checkpoints and a best model."""
    folder = tmp_path_factory.mktemp("saved")
    plan = plan_for(odd_pictures, model=SMALL, epochs=2, freeze_epochs=1, batch_size=8)
    state = new_state(plan)
    fit(plan, state, Saver(folder, state, plan.card()))
    return plan, folder


def damaged(whole: bytes, kind: str, number: int) -> bytes:
    places = np.random.default_rng(number)
    if kind == "truncated":
        return whole[: places.integers(0, len(whole))]
    data = bytearray(whole)
    # Half of the damage is in the header.
    offset = int(places.integers(0, min(len(data), 2000) if number % 2 else len(data)))
    data[offset] ^= 1 << int(places.integers(0, 8))
    return bytes(data)


DAMAGES = [("flipped", number) for number in range(400)] + [("truncated", number) for number in range(200)]


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(saved_run, tmp_path: Path) -> None:
    plan, folder = saved_run
    newest, before = checkpoints(folder)
    whole_bytes = newest.read_bytes()
    (tmp_path / before.name).write_bytes(before.read_bytes())
    shutil.copytree(folder / BEST_FOLDER, tmp_path / BEST_FOLDER)
    state = new_state(plan)
    for number, (kind, seed) in enumerate(DAMAGES):
        data = damaged(whole_bytes, kind, seed)
        with pytest.raises(UsageError):
            state.from_bytes(data)
        if number % 60 == 0:
            (tmp_path / newest.name).write_bytes(data)
            (problem,) = state.restore(tmp_path)
            assert newest.name in problem
            assert state.step == 6
    (tmp_path / before.name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"{newest.name} is not usable.*{before.name} is not usable"):
        state.restore(tmp_path)


def test_a_checkpoint_of_another_version_is_refused_with_advice(saved_run, tmp_path: Path) -> None:
    plan, folder = saved_run
    newest, before = checkpoints(folder)
    with pytest.raises(UsageError, match="truncated, or not a checkpoint"):
        new_state(plan).from_bytes(b"tl checkpoint two\n" + newest.read_bytes())
    for path in (newest, before):
        header, rest = path.read_bytes().split(b"\n", 1)
        assert header == b"tl checkpoint 4"
        # Format 3: MixUp and CutMix with one share and one box for all images of a step.
        (tmp_path / path.name).write_bytes(b"tl checkpoint 3\n" + rest)
    state = new_state(plan)
    fresh = state_digest(state)
    with pytest.raises(UsageError, match=r"cannot resume.*format 3.* reads format 4.*start a new run"):
        state.restore(tmp_path)
    assert (state_digest(state), state.step) == (fresh, 0)


def replace_config(plan: setup.Plan, **values: object) -> setup.Plan:
    return replace(plan, resolved=replace(plan.resolved, config=plan.config.model_copy(update=values)))


def test_a_lost_best_model_is_replaced_by_the_best_remaining_epoch(saved_run, tmp_path: Path) -> None:
    plan, folder = saved_run
    newest, _ = checkpoints(folder)
    (tmp_path / newest.name).write_bytes(newest.read_bytes())
    for prepare, text in (
        (lambda: None, "is not a saved model"),
        (lambda: shutil.copytree(folder / BEST_FOLDER, tmp_path / BEST_FOLDER), ""),
        (lambda: (tmp_path / BEST_FOLDER / bundle.WEIGHTS_FILE).write_bytes(b"x"), "is damaged"),
    ):
        prepare()
        state = new_state(plan)
        problems = state.restore(tmp_path)
        assert len(problems) == bool(text)
        assert (state.counters.best_epoch == 0) is bool(text)
        if text:
            assert text in problems[0]
            assert state.counters.is_better(0.0, 9.0)
            assert not _should_stop_early(replace_config(plan, early_stop=1), plan.phases[-1], state.counters)
    # The best model is of an epoch that will be trained again; the previous best model is gone.
    for each in (folder / BEST_FOLDER).iterdir():
        shutil.copy(each, tmp_path / BEST_FOLDER)
    bundle.write_card(
        tmp_path / BEST_FOLDER, bundle.verified_card(tmp_path / BEST_FOLDER).model_copy(update={"epoch": 9})
    )
    state = new_state(plan)
    assert (state.restore(tmp_path), state.counters.best_epoch) == ([], 0)


@pytest.mark.parametrize("name", [bundle.WEIGHTS_FILE, bundle.CARD_FILE])
def test_a_damaged_saved_model_is_detected(saved_run, tmp_path: Path, name: str) -> None:
    _, folder = saved_run
    for each in (bundle.WEIGHTS_FILE, bundle.CARD_FILE):
        (tmp_path / each).write_bytes((folder / BEST_FOLDER / each).read_bytes())
    bundle.verified_card(tmp_path)
    whole_bytes = (tmp_path / name).read_bytes()
    for kind, seed in DAMAGES:
        (tmp_path / name).write_bytes(damaged(whole_bytes, kind, seed))
        with pytest.raises(WeightsError):
            bundle.verified_card(tmp_path)
    with pytest.raises(WeightsError):
        registry.restore(tmp_path)


def test_a_card_without_its_digest_is_damaged(saved_run, tmp_path: Path) -> None:
    _, folder = saved_run
    written = (folder / BEST_FOLDER / bundle.CARD_FILE).read_text()
    (tmp_path / bundle.CARD_FILE).write_text(written.replace('"sha256": "', '"shb256": "'))
    with pytest.raises(WeightsError, match="damaged"):
        bundle.read_card(tmp_path)


def test_an_interrupted_save_leaves_a_complete_model(saved_run, tmp_path: Path, monkeypatch) -> None:
    plan, folder = saved_run
    card = bundle.verified_card(folder / BEST_FOLDER)
    renamed = Path.replace

    class CutError(Exception):
        pass

    for cut in range(1, 4):
        target = tmp_path / str(cut)
        bundle.save(target, plan.classifier.model, card.model_copy(update={"epoch": 1}))
        with torch.no_grad():
            next(plan.classifier.model.parameters()).add_(1)
        calls = []

        def replace(self: Path, to: Path, cut: int = cut, calls: list = calls) -> Path:
            calls.append(to)
            if len(calls) == cut:
                raise CutError
            return renamed(self, to)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(CutError):
            bundle.save(target, plan.classifier.model, card.model_copy(update={"epoch": 2}))
        monkeypatch.setattr(Path, "replace", renamed)
        # The old model until the new weights are complete, then the new one.
        assert bundle.verified_card(target).epoch == (1 if cut < 3 else 2)


def test_a_full_disk_leaves_the_previous_checkpoint_usable(saved_run, tmp_path: Path) -> None:
    plan, _ = saved_run
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card())
    assert saver.save()
    first = state_digest(state)
    size = len(state.to_bytes())
    for offset in np.linspace(0, size - 1, 20).astype(int):
        state.counters.step += 1
        with largest_file(int(offset)), pytest.raises(StorageError, match=r"cannot write .*step-0.*ckpt"):
            saver.save()
        again = new_state(plan)
        assert again.restore(tmp_path) == []
        assert again.step == 0
        assert state_digest(again) == first
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000.ckpt"]


def test_weights_that_are_not_finite_are_not_saved(odd_pictures: Path, tmp_path: Path) -> None:
    plan = plan_for(odd_pictures, model=SMALL, epochs=2, freeze_epochs=1, batch_size=8, log_every=4,
                    unfreeze_lr=1e30, schedule="constant", optimizer="sgd")  # fmt: skip
    state = new_state(plan)
    saver = Saver(tmp_path, state, plan.card(), Every(steps=1))
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step (8|12) \(lr 1e\+30\); try a lower --lr"):
        fit(plan, state, saver)
    assert not saver.save()
    good = new_state(plan)
    assert good.restore(tmp_path) == []
    assert good.step < 12
    assert all(bool(torch.isfinite(value).all()) for value in good.model.state_dict().values())
    assert bundle.verified_card(tmp_path / BEST_FOLDER).epoch == 1
