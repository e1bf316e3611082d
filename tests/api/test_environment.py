"""The facts for a bug report are those of the libraries, and hold no secret."""

import platform
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import torch

import tl_cli
from tl_cli.api.environment import report_sections, without_credentials


def test_versions_machine_and_paths_are_those_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "S3CRET")
    facts = dict(report_sections())
    assert facts["versions"]["torch"] == version("torch")
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["machine"]["system"] == platform.platform()
    assert facts["machine"]["processor"]
    assert facts["paths"]["tl"] == str(Path(tl_cli.__file__).parent)
    assert (facts["environment"]["OMP_NUM_THREADS"], facts["environment"]["HF_TOKEN"]) == ("3", "set")
    assert "S3CRET" not in str(facts)


def test_every_package_has_its_version_or_none() -> None:
    installed = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in distributions()}
    versions = dict(report_sections())["versions"]
    assert versions == {
        "tl": versions["tl"],
        "python": platform.python_version(),
        **{name: installed.get(name) for name in versions if name not in ("tl", "python")},
    }
    assert installed["scikit-learn"] == versions["scikit-learn"]


URIS = {
    "https://user:S3CRET@host.example/mlflow": "https://host.example/mlflow",
    "https://S3CRET@host.example:5000": "https://host.example:5000",
    "postgresql+psycopg2://u:S3/CRET?x#y@z@host:5432/db?sslpassword=S3CRET": "postgresql+psycopg2://host:5432/db",
    "https://host.example/mlflow?token=S3CRET": "https://host.example/mlflow",
    "https://host.example/mlflow#S3CRET": "https://host.example/mlflow",
    "user:S3CRET@host.example": "host.example",
    "sqlite:////home/a@b/mlflow.db": "sqlite:////home/a@b/mlflow.db",
    "sqlite:////home/a/mlflow.db?key=S3CRET": "sqlite:////home/a/mlflow.db",
    "/home/a@b/mlruns": "/home/a@b/mlruns",
    "file:///home/a#b/mlruns": "file:///home/a#b/mlruns",
}


@pytest.mark.parametrize(("uri", "shown"), URIS.items())
def test_an_address_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
