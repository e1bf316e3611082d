import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.recording import files, project, use_project
from tl_cli.errors import TrackingError
from tl_cli.tracking import places
from tl_cli.tracking.destination import find_destination
from tl_cli.tracking.places import find_moves
from tl_cli.tracking.store import open_store


def recorded(folder: Path) -> set[str]:
    """Return the artifact locations in MLflow's tables."""
    query = (
        "select artifact_location from experiments where experiment_id > 0 union all select artifact_uri from runs "
        "union all select artifact_location from logged_models"
    )
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return {str(uri) for (uri,) in database.execute(query)}


TRAIN = ("train", "timm/test_efficientnet", "--weights", "none", "--data", "digits")


@pytest.mark.parametrize("style", ["{}", "file://{}"])
def test_a_copied_store_is_detected_relocated_and_purged_without_its_original(
    style: str, tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = workplace / "a b#1", workplace / "copy"
    location = f"{original}/mlruns/1" if style == "{}" else (original / "mlruns" / "1").as_uri()
    run_id = project(original, ready_database, location)
    shutil.copytree(original, copy)
    use_project(copy, monkeypatch)
    before, in_copy = files(original), files(copy)
    refused = tl("runs", "rm", "one", "--purge", "--yes")
    assert (refused.code, str(original / "mlruns") in refused.err, "tl runs relocate" in refused.err) == (2, True, True)
    refused = tl(*TRAIN)
    assert (refused.code, "tl runs relocate" in refused.err) == (1, True), refused.err
    assert "was copied or moved" in tl("runs").err
    records = recorded(copy)
    assert tl("runs", "relocate", "--dry-run").code == 0
    assert recorded(copy) == records
    moved = tl("runs", "relocate")
    assert moved.code == 0, moved.err
    old_location, new_location = (
        location,
        str(copy / "mlruns" / "1") if style == "{}" else (copy / "mlruns" / "1").as_uri(),
    )
    assert recorded(copy) == {uri.replace(old_location, new_location) for uri in records}
    assert (files(original), files(copy)) == (before, in_copy)
    assert recorded(original) == records
    assert "was copied or moved" not in tl("runs").err
    assert open_store(None).experiment("tl") == "1"
    purged = tl("runs", "rm", "one", "--purge", "--yes")
    assert purged.code == 0, purged.err
    assert list(files(copy)) == ["note.txt"]
    assert not list(copy.glob(f"mlruns/**/{run_id}*"))
    assert files(original) == before


@pytest.mark.parametrize("through", ["move", "copy whose original is gone", "moved to where another project was"])
def test_a_moved_store_is_detected_and_relocated(
    through: str, tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(workplace / "old", ready_database)
    if through == "move":
        (workplace / "old").rename(workplace / "new #1")
    else:
        shutil.copytree(workplace / "old", workplace / "new #1")
        shutil.rmtree(workplace / "old")
    if through.startswith("moved"):
        (workplace / "old" / "mlruns" / "1").mkdir(parents=True)
    use_project(workplace / "new #1", monkeypatch)
    for refused in (tl(*TRAIN), tl(*TRAIN, "--experiment", "tl")):
        assert (refused.code, "tl runs relocate" in refused.err) == (1, True), refused.err
    assert tl("runs", "relocate").code == 0
    assert all(uri.startswith(f"{workplace}/new #1/mlruns/1") for uri in recorded(workplace / "new #1"))
    again = tl("runs", "relocate")
    assert (again.code, "nothing to relocate" in again.out) == (0, True)
    assert tl("runs", "rm", "one", "--purge", "--yes").code == 0
    assert list(files(workplace / "new #1")) == ["note.txt"]


def test_a_project_behind_a_symbolic_link_is_not_a_copy(
    tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(workplace / "real", ready_database)
    (workplace / "link").symlink_to(workplace / "real")
    for folder in ("link", "real"):
        use_project(workplace / folder, monkeypatch)
        assert find_moves(workplace / folder / "mlflow.db") == places.Moves()
        assert open_store(f"sqlite:///{workplace}/{folder}/mlflow.db").experiment("tl") == "1"
    purged = tl("runs", "rm", "one", "--purge", "--yes", "--tracking-uri", f"sqlite:///{workplace}/link/mlflow.db")
    assert purged.code == 0, purged.err
    assert list(files(workplace / "real")) == ["note.txt"]


def test_copies_inside_and_around_their_original_are_distinguished(workplace: Path, ready_database: Path) -> None:
    project(workplace / "outer" / "inner", ready_database)
    shutil.copytree(workplace / "outer" / "inner", workplace / "copied")
    shutil.copytree(workplace / "copied", workplace / "outer", dirs_exist_ok=True)
    shutil.copytree(workplace / "copied", workplace / "outer" / "inner" / "backup")
    inner = workplace / "outer" / "inner" / "mlruns" / "1"
    assert find_moves(workplace / "outer" / "inner" / "mlflow.db") == places.Moves()
    for copy in (workplace / "outer", workplace / "outer" / "inner" / "backup"):
        moves = find_moves(copy / "mlflow.db")
        assert {(move.old, move.new) for move in moves.moves if move.is_experiment and move.record.id == "1"} == {
            (inner, copy / "mlruns" / "1")
        }
        assert moves.count("runs") == moves.count("logged_models") == 1
        assert not places.is_within(copy / "mlflow.db", inner)


@pytest.mark.parametrize("flag", ["--outside", "--keep-outside"])
def test_an_experiment_with_its_own_location_is_not_moved_and_its_files_need_confirmation(
    flag: str, tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = workplace / "disk" / "artifacts"
    run_id = project(workplace / "project", ready_database, str(disk))
    use_project(workplace / "project", monkeypatch)
    assert find_moves(workplace / "project" / "mlflow.db") == places.Moves()
    assert open_store(None).experiment("tl") == "1"
    (disk / "mine.txt").write_text("mine")
    refused = tl("runs", "rm", "one", "--purge", "--yes")
    assert (refused.code, str(disk / run_id) in refused.err, flag in refused.err) == (2, True, True)
    before = files(disk)
    purged = tl("runs", "rm", "one", "--purge", "--yes", flag)
    assert purged.code == 0, purged.err
    assert list(files(workplace / "project")) == ["note.txt"]
    assert files(disk) == ({"mine.txt": b"mine"} if flag == "--outside" else before)


def test_artifacts_on_another_disk_are_found_in_the_folder_that_is_named(
    tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = project(workplace / "project", ready_database, str(workplace / "disk1" / "artifacts"))
    use_project(workplace / "project", monkeypatch)
    (workplace / "disk1").rename(workplace / "disk2")
    lost = tl("runs", "relocate")
    assert (lost.code, f"the files of {run_id} are not here" in lost.err) == (1, True)
    assert tl("runs", "relocate", workplace / "disk2" / "artifacts").code == 0
    assert all(uri.startswith(f"{workplace}/disk2/artifacts") for uri in recorded(workplace / "project"))


def test_a_folder_that_a_run_shares_is_never_deleted(
    tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(workplace / "project", ready_database)
    photos = workplace / "project" / "photos"
    photos.mkdir()
    (photos / "mine.txt").write_text("mine")
    with closing(sqlite3.connect(workplace / "project" / "mlflow.db")) as database, database:
        database.execute("update runs set artifact_uri = ?", (str(photos),))
    use_project(workplace / "project", monkeypatch)
    purged = tl("runs", "rm", "one", "--purge", "--yes", "--outside")
    assert (purged.code, f"{photos} stays" in purged.out.replace("\n", "")) == (0, True), purged.err
    assert (photos / "mine.txt").read_text() == "mine"


def test_a_linked_folder_of_runs_needs_confirmation_and_its_link_is_removed_too(
    tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = project(workplace / "project", ready_database)
    folder, disk = workplace / "project" / "mlruns" / "1" / run_id, workplace / "disk" / run_id
    disk.parent.mkdir()
    folder.rename(disk)
    folder.symlink_to(disk)
    use_project(workplace / "project", monkeypatch)
    assert tl("runs", "rm", "one", "--purge", "--yes").code == 2
    assert (disk / "artifacts" / "note.txt").exists()
    assert tl("runs", "rm", "one", "--purge", "--yes", "--outside").code == 0
    assert not disk.exists()
    assert not os.path.lexists(folder)


def test_nothing_is_written_to_a_run_of_another_project(
    workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(workplace / "original", ready_database)
    shutil.copytree(workplace / "original", workplace / "copy")
    use_project(workplace / "copy", monkeypatch)
    store = open_store(None)
    with pytest.raises(TrackingError, match="tl runs relocate"):
        store.check_place(store.find("one"))
    monkeypatch.setenv("MLFLOW_RUN_ID", store.client.create_run("1").info.run_id)
    with pytest.raises(TrackingError, match="tl runs relocate"):
        find_destination(store, None)
    # Its files were not copied, so there is no file that could be recorded instead.
    shutil.rmtree(workplace / "copy" / "mlruns" / "1")
    with pytest.raises(TrackingError, match="copied or moved|belongs to"):
        store.check_place(store.find("one"))


def test_a_database_shared_by_several_projects_is_not_moved(
    tl, workplace: Path, ready_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "shared").mkdir()
    shutil.copy(ready_database, workplace / "shared" / "mlflow.db")
    for name in ("first", "second"):
        (workplace / name).mkdir()
        monkeypatch.chdir(workplace / name)
        store = open_store(f"sqlite:///{workplace}/shared/mlflow.db")
        assert store.experiment("tl") == "1"
        store.check_place(store.client.create_run("1"))
