"""A saved model is found by its folder, by one of its files or by its run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.conftest import Project
from tl_cli.api.model_lookup import CARD_FILE, WEIGHTS_FILE, Target, find_model, find_model_folder, find_to_read
from tl_cli.api.recorded_model import RecordedModel
from tl_cli.models import bundle


def test_a_folder_and_its_files_are_one_saved_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CARD_FILE, WEIGHTS_FILE):
        (tmp_path / name).touch()
    for name in (str(tmp_path), str(tmp_path / CARD_FILE), str(tmp_path / WEIGHTS_FILE)):
        assert find_model_folder(name) == tmp_path
        assert find_model(name, None, pytest.fail) == Target(tmp_path, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_model_folder(f"~/{tmp_path.name}") == tmp_path
    assert (CARD_FILE, WEIGHTS_FILE) == (bundle.CARD_FILE, bundle.WEIGHTS_FILE)


def test_other_names_are_no_saved_model(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    for name in (str(tmp_path), str(tmp_path / "text.txt"), "latest", "x" * 5000):
        assert find_model_folder(name) is None


def test_the_model_of_a_run_comes_with_its_run(project: Project) -> None:
    run = project.runs[0]
    model = find_model("first", None, pytest.fail)
    assert isinstance(model, RecordedModel)
    assert model.run.info.run_id == run.run_id
    assert (model.folder / WEIGHTS_FILE).read_bytes() == (run.model / WEIGHTS_FILE).read_bytes()


def test_to_read_a_model_neither_mlflow_nor_torch_is_imported(project: Project) -> None:
    script = (
        "import sys\nfrom tl_cli.api.model_lookup import find_to_read\n"
        "found = find_to_read('first', None, print)\n"
        "print(found.folder, found.name, sorted({'mlflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = find_model("first", None, pytest.fail)
    assert done.stdout == f"{expected.folder} {expected.name} []\n"
    assert find_to_read("first", None, pytest.fail) == Target(expected.folder, expected.name)


def test_a_folder_is_found_without_importing_mlflow_or_torch(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).touch()
    script = (
        "import sys\nfrom tl_cli.api.model_lookup import find_model\n"
        "find_model(sys.argv[1], None, print)\nprint(sorted({'mlflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
