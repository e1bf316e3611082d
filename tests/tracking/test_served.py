import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from PIL import Image

from tests.support.commands import Result
from tests.support.recording import save_small_model
from tl_cli.tracking.served import ImageClassifier, RequestError, column_of
from tl_cli.tracking.store import open_store


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("served") / "best")


def loaded(saved: Path) -> ImageClassifier:
    model = ImageClassifier()
    model.load_context(SimpleNamespace(artifacts={"model": str(saved)}))
    return model


def picture(side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def test_images_without_a_prediction_have_nulls_and_a_reason(saved: Path) -> None:
    cells = pd.DataFrame({"image": [picture(), None, b"no image", "nan"]})
    table = loaded(saved).predict(None, cells)
    assert list(table.columns) == ["label", "probability", "a", "b", "error"]
    first = table.iloc[0]
    assert first["a"] + first["b"] == pytest.approx(1)
    assert (first["label"], first["probability"]) == max(
        (("a", first["a"]), ("b", first["b"])), key=lambda pair: pair[1]
    )
    assert first["error"] is None
    assert table.iloc[1:, :4].isna().all(axis=None)
    assert [reason.split(":")[0] for reason in table["error"][1:]] == [f"row {row} of 4" for row in (2, 3, 4)]


def test_several_images_in_one_cell_are_rows_and_the_index_is_kept_otherwise(saved: Path) -> None:
    model = loaded(saved)
    in_one = model.predict(None, pd.DataFrame({"image": [[picture(), picture()]]}, index=[7]))
    assert list(in_one.index) == [0, 1]
    assert "error" not in in_one
    assert list(model.predict(None, pd.DataFrame({"image": [picture()]}, index=[7])).index) == [7]


def test_a_server_has_a_pixel_limit_and_a_program_has_none(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_REQUEST_PIXELS", str(32 * 32))
    model = loaded(saved)
    cells = pd.DataFrame({"image": [picture(), picture()]})
    assert len(model.predict(None, cells)) == 2
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    assert len(model.predict(None, cells[:1])) == 1
    with pytest.raises(RequestError, match="2,048 pixels, the limit is 1,024.*higher TL_REQUEST_PIXELS") as refused:
        model.predict(None, cells)
    assert refused.value.get_http_status_code() == 400


def test_an_invalid_pixel_limit_is_refused_when_the_model_is_loaded(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_REQUEST_PIXELS", "8x8")
    with pytest.raises(mlflow.MlflowException, match="TL_REQUEST_PIXELS='8x8' is not a number of pixels"):
        loaded(saved)


def test_a_failure_of_the_model_is_an_internal_error_with_its_cause(saved: Path) -> None:
    model = loaded(saved)
    model.predictor = None
    with pytest.raises(RequestError, match="the model failed: AttributeError: ") as failed:
        model.predict(None, pd.DataFrame({"image": [picture()]}))
    assert failed.value.get_http_status_code() == 500
    # MLflow's server adds the request to the message.
    failed.value.message += " data:image/png;base64,AAAA"
    assert "base64" not in json.loads(failed.value.serialize_as_json())["message"]


@pytest.mark.parametrize(
    ("name", "column"),
    [("red", "red"), ("label", "class:label"), ("error", "class:error"), ("class:red", "class:class:red")],
)
def test_no_class_is_mistaken_for_another_column(name: str, column: str) -> None:
    assert column_of(name) == column


@pytest.mark.slow
def test_a_recorded_model_works_where_tl_is_not_installed(tl, colours: Path, workplace: Path) -> None:
    trained: Result = tl(
        "train", "shufflenet_v2_x0_5", "--weights", "none", "--data", colours, "--epochs", "2", "--freeze-epochs", "1",
        "--input-size", "32", "--tag", "who=me", "--register", "colours",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "registered model" not in trained.out + trained.err
    run = open_store(None).find("latest")
    model_id = run.model_ids[0]
    script = textwrap.dedent(f"""
        import base64, importlib.util, sys
        # The checkout is neither in the path nor found by an editable installation.
        sys.path = [p for p in sys.path if not __import__("os").path.exists(__import__("os").path.join(p or ".", "tl_cli"))]
        assert importlib.util.find_spec("tl_cli") is None
        import mlflow, pandas as pd
        mlflow.set_tracking_uri("sqlite:///{workplace}/mlflow.db")
        model = mlflow.pyfunc.load_model("models:/{model_id}")
        raw = [open("{colours}/test/" + name + "/000.png", "rb").read() for name in ("blue", "red")]
        for column in (raw, [base64.b64encode(data).decode() for data in raw]):
            answer = model.predict(pd.DataFrame({{"image": column}}))
            print(answer.to_json(orient="records"))
        import tl_cli
        assert "site-packages" not in tl_cli.__file__ and "{Path(__file__).parents[2]}" not in tl_cli.__file__
    """)
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=workplace, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_bytes, by_base64 = (json.loads(line) for line in done.stdout.splitlines())
    assert by_bytes == by_base64
    for row in by_bytes:
        shares = {name: row[name] for name in ("blue", "green", "red")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(shares, key=shares.get)
        assert row["probability"] == pytest.approx(max(shares.values()))
    artifacts = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert not [path for path in artifacts.rglob("*") if path.suffix in (".pkl", ".pth", ".pt", ".cloudpickle")]
    assert mlflow.MlflowClient().get_registered_model("colours").name == "colours"
