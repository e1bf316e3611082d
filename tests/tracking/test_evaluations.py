import json
from pathlib import Path

import pytest
import torch

from tests.support.recording import recorder
from tl_cli.contract import DataSpec, Split
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.measure import Measured
from tl_cli.tracking.evaluations import (
    dataset_inputs,
    dataset_of,
    evaluation_name,
    in_letters,
    is_first_test,
    log_evaluation,
    log_first_test,
    log_inspection,
    set_note,
)
from tl_cli.tracking.recorded import Run
from tl_cli.tracking.store import Store

DIGEST = "0123456789abcdef" * 4


def measured(
    *,
    part: str = "test",
    is_own: bool = True,
    is_changed: bool = False,
    source: str = "/a/ph otos",
    otherwise: str = "",
) -> Measured:
    return Measured(
        labelled=LabelledLogits(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)), images=None, source=source,
        part=part, split=Split(count=1, digest=DIGEST, scheme="contents"), is_own=is_own, is_changed=is_changed,
        trained_on=None, missing=(), otherwise=otherwise, notes=(),
    )  # fmt: skip


@pytest.fixture
def run(store: Store) -> Run:
    with recorder(store) as record:
        pass
    return store.find(record.run_id)


def artifacts(store: Store, run: Run, folder: str) -> list[str]:
    return [item.path for item in store.client.list_artifacts(run.info.run_id, folder)]


@pytest.mark.parametrize(
    ("evaluation", "name"),
    [
        (measured(), "test"),
        (measured(is_changed=True), "ph_otos-test-01234567"),
        (measured(part="val"), "ph_otos-val-01234567"),
        (measured(otherwise="flip"), "ph_otos-test-01234567-flip"),
        (measured(otherwise="none-bf16"), "ph_otos-test-01234567-none-bf16"),
        (measured(is_own=False, part="all", source="digits"), "digits-all-01234567"),
    ],
)
def test_only_the_runs_own_unchanged_test_images_are_called_test(evaluation: Measured, name: str) -> None:
    assert evaluation_name(evaluation) == name


def test_metrics_of_other_images_have_separate_names_and_are_recorded_once(
    store: Store, run: Run, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("x")
    assert is_first_test(run, measured())
    assert log_evaluation(store, run, measured(), {"accuracy": 0.5}, [table]) == "eval/test"
    other = measured(is_own=False, part="all")
    folder = log_evaluation(store, run, other, {"accuracy": 0.25}, [])
    assert folder == "eval/ph_otos-all-01234567"
    (run,) = store.reload([run])
    assert not is_first_test(run, measured())
    # Existing records are kept.
    log_evaluation(store, run, measured(), {"accuracy": 0.75, "loss": 2.0}, [])
    (run,) = store.reload([run])
    assert run.data.metrics == {"test/accuracy": 0.5, "test/loss": 2.0, f"{folder}/accuracy": 0.25}
    assert artifacts(store, run, "eval/test") == ["eval/test/table.csv"]
    assert run.images["evaluation"].digest == DIGEST[:16]


def test_a_first_test_after_the_training_is_described_above_the_old_note(
    store: Store, run: Run, tmp_path: Path
) -> None:
    logits = tmp_path / "test_logits.npz"
    logits.write_bytes(b"x")
    set_note(store, run.info.run_id, "trained\nlast line")
    (run,) = store.reload([run])
    log_first_test(store, run, 0.875, logits)
    (run,) = store.reload([run])
    assert run.data.tags["mlflow.note.content"].split("\n\n") == [
        "**87.50% on test images**, measured by tl eval after training", "trained\nlast line",
    ]  # fmt: skip
    assert artifacts(store, run, "eval") == ["eval/test_logits.npz"]


def test_files_of_an_inspection_are_in_the_folder_of_its_view(store: Store, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    log_inspection(store, run, "residual", [tmp_path / "a.png"])
    assert artifacts(store, run, "inspect/residual") == ["inspect/residual/a.png"]


def test_a_description_is_replaced_and_the_users_text_below_it_is_kept(store: Store, run: Run) -> None:
    def note() -> str:
        return store.client.get_run(run.info.run_id).data.tags["mlflow.note.content"]

    store.client.set_tag(run.info.run_id, "mlflow.note.content", "mine")
    set_note(store, run.info.run_id, "one\nend")
    assert note() == "one\nend\n\nmine"
    set_note(store, run.info.run_id, "two\nend")
    assert note() == "two\nend\n\nmine"


def test_each_split_is_an_mlflow_input_with_its_context_and_digest_scheme() -> None:
    splits = {part: Split(count=2, digest=part * 40, scheme="contents") for part in ("train", "val", "test")}
    inputs = dataset_inputs(DataSpec(source="/a/photos", layout="train/val/test", splits=splits))
    tags = [{tag.key: tag.value for tag in each.tags} for each in inputs]
    assert [each["mlflow.data.context"] for each in tags] == ["training", "validation", "testing"]
    assert {each["tl.digest_scheme"] for each in tags} == {"contents"}
    assert [each.dataset.name for each in inputs] == ["photos-train", "photos-val", "photos-test"]


def test_a_data_set_is_recorded_with_its_full_digest_in_the_profile() -> None:
    own = dataset_of("photos-val", "/a/photos", Split(count=7, digest=DIGEST, scheme="contents"))
    assert (own.digest, own.source_type, json.loads(own.source)) == (DIGEST[:16], "local", {"uri": "/a/photos"})
    assert json.loads(own.profile) == {"num_rows": 7, "sha256": DIGEST}
    assert dataset_of("digits-val", "digits", Split(count=7, digest=DIGEST)).source_type == "code"


def test_names_have_the_characters_that_mlflow_allows_and_keep_their_end() -> None:
    assert in_letters("ph öt/os:1.b-c_d") == "ph__t_os_1.b-c_d"
    assert in_letters("x" * 120 + "end") == "x" * 97 + "end"
