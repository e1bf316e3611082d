"""``tl env``: the facts for a bug report, without secrets."""

import json
import platform
from importlib.metadata import version

import pytest
import torch

from tests.support.imports import run_watched


def test_the_environment_agrees_with_the_libraries(tl, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    report = json.loads(tl("env", "--json").out)
    assert report["versions"]["python"] == platform.python_version()
    for name in ("torch", "torchvision", "mlflow", "numpy"):
        assert report["versions"][name] == version(name)
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["machine"]["torch_cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert report["environment"]["OMP_NUM_THREADS"] == "7"
    assert report["paths"]["torch_weights"] == str(tmp_path / "torch" / "hub")
    assert report["store"]["tracking_uri"].endswith("mlflow.db")
    shown = tl("env").out
    assert f"torch: {version('torch')}" in shown


def test_no_secret_of_the_environment_is_printed(tl, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "user:S3CRET@proxy:3128")
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "AWS_SECRET_ACCESS_KEY",
                 "HF_TOKEN", "HF_ENDPOINT"):  # fmt: skip
        monkeypatch.setenv(name, "S3CRET")
    uri = "https://user:S3CRET@host.example/mlflow?token=S3CRET"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    for options in ((), ("--json",)):
        result = tl("env", *options)
        assert result.code == 0
        assert "S3CRET" not in result.out + result.err
        assert "https://host.example/mlflow" in result.out
        assert "HTTP_PROXY" in result.out


def test_the_environment_is_printed_before_torch_is_imported() -> None:
    done = run_watched("env", stop_at="torch")
    assert done.returncode == 77
    assert "python: " in done.stdout
    assert "mlflow.db" in done.stdout
    assert "torch cpu capability" not in done.stdout
