import pytest

from tests.support.recording import recorder
from tl_cli.contract import Split
from tl_cli.errors import RunNotFoundError
from tl_cli.tracking.liveness import HEARTBEAT_TAG, PAUSES_TAG
from tl_cli.tracking.recorded import (
    PARENT_TAG,
    RecordedImages,
    Run,
    RunData,
    RunInfo,
    children_of,
    find_removed,
    find_run,
    images_by_context,
    last_seen,
    recorded_split,
    run_and_model,
)
from tl_cli.tracking.store import Store


def made(
    run_id: str,
    name: str = "r",
    *,
    start: int = 1000,
    end: int | None = None,
    status: str = "FINISHED",
    accuracy: float | None = None,
    digest: str = "d",
    **tags: str,
) -> Run:
    metrics = {} if accuracy is None else {"best/val_accuracy": accuracy}
    info = RunInfo(run_id, name, "1", status, start, end, "active", f"/{run_id}")
    return Run(info, RunData(metrics, {}, tags), {"validation": RecordedImages(digest, None, "contents")})


def test_runs_are_found_by_names_ids_and_keywords(store: Store) -> None:
    with recorder(store) as one:
        pass
    with recorder(store) as two:
        pass
    assert store.find("latest").info.run_id == two.run_id
    assert store.find(one.run_id[:6]).info.run_id == one.run_id
    with pytest.raises(RunNotFoundError, match="2 runs are called 'r'"):
        store.find("r")
    with pytest.raises(RunNotFoundError, match="no run is called 'zzzz'"):
        store.find("zzzz")


def test_the_latest_run_was_started_or_resumed_last_and_is_no_comparison() -> None:
    resumed = made("a", start=1000, **{PAUSES_TAG: "1500-9000"})
    later, comparison = made("b", start=2000), made("c", start=10_000, **{PARENT_TAG: "models"})
    assert find_run([later, resumed, comparison], "latest", "store") is resumed
    assert find_run([comparison], "latest", "store") is comparison


def test_the_best_run_is_the_earliest_of_the_most_accurate_on_the_images_of_the_latest() -> None:
    first, equal = made("a", start=1, accuracy=0.9), made("b", start=2, accuracy=0.9)
    other_images, latest = made("c", start=3, accuracy=0.99, digest="e"), made("d", start=4, accuracy=0.5)
    assert find_run([first, equal, other_images, latest], "best", "store") is first
    with pytest.raises(RunNotFoundError, match="no run in store has a validation accuracy yet"):
        find_run([made("a")], "best", "store")


def test_an_exact_name_counts_before_the_beginning_of_an_id() -> None:
    by_name, by_id = made("f" * 32, "abc"), made("abc" + "0" * 29, "other")
    assert find_run([by_name, by_id], "abc", "store") is by_name
    assert find_run([by_name, by_id], "abc0", "store") is by_id
    with pytest.raises(RunNotFoundError, match="no run is called 'ab'"):
        find_run([by_name, by_id], "ab", "store")
    assert find_removed([by_name, by_id], "abc") is by_name
    assert find_removed([made("x"), made("y")], "r") is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [("runs:/abc", ("abc", "")), ("runs:/abc/model/best", ("abc", "model/best")), ("abc/model", ("abc/model", ""))],
)
def test_an_address_of_a_run_may_name_a_model(name: str, parts: tuple[str, str]) -> None:
    assert run_and_model(name) == parts


def test_trainings_of_a_comparison_are_those_with_its_tag_in_the_order_of_their_start() -> None:
    tag = {"mlflow.parentRunId": "p"}
    runs = [made("c", start=3, **tag), made("b", start=2), made("a", start=1, **tag)]
    assert [run.info.run_id for run in children_of(runs, "p")] == ["a", "c"]


def test_images_are_grouped_by_their_context_and_those_without_one_are_left_out() -> None:
    found = images_by_context(
        [
            ("d1", '{"num_rows": 9}', {"mlflow.data.context": "training", "tl.digest_scheme": "contents"}),
            ("d2", None, {"mlflow.data.context": "training"}),
            ("d3", None, {"mlflow.data.context": "testing"}),
            ("d4", None, {}),
        ]
    )
    assert found == {
        "training": RecordedImages("d1", '{"num_rows": 9}', "contents"),
        "testing": RecordedImages("d3", None, "lengths"),  # as earlier versions recorded it
    }


@pytest.mark.parametrize("profile", [None, "", "no json", "[]", "{}", '{"num_rows": -1}', '{"num_rows": "many"}'])
def test_a_profile_of_another_program_is_no_split(profile: str | None) -> None:
    run = made("a")
    other = Run(run.info, run.data, {"training": RecordedImages("d", profile, "contents")})
    assert recorded_split(other, "training") is None
    assert recorded_split(other, "testing") is None


def test_a_recorded_split_has_its_count_and_digest() -> None:
    run = made("a")
    own = Run(run.info, run.data, {"testing": RecordedImages("d", '{"num_rows": 9}', "contents")})
    assert recorded_split(own, "testing") == Split(count=9, digest="d", scheme="contents")


@pytest.mark.parametrize(
    ("status", "end", "beat", "seconds"),
    [("FINISHED", 9000, "20", 9), ("RUNNING", 9000, "20", 20), ("RUNNING", None, "5", 7), ("RUNNING", None, "soon", 7)],
)
def test_a_run_was_last_seen_at_its_end_or_its_last_heartbeat(
    status: str, end: int | None, beat: str, seconds: float
) -> None:
    assert last_seen(made("a", start=7000, end=end, status=status, **{HEARTBEAT_TAG: beat})) == seconds
