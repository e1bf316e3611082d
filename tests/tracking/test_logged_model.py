import shutil
from pathlib import Path

import pytest
from mlflow.utils.logging_utils import enable_logging

from tests.support.recording import recorder, save_small_model
from tl_cli.errors import TrackingError
from tl_cli.models.bundle import WEIGHTS_FILE
from tl_cli.tracking.logged_model import Naming, log_model, share_weights
from tl_cli.tracking.store import Store


def test_a_model_is_recorded_once_and_again_after_its_deletion(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    enable_logging()  # as MLflow's autologging does
    folder = save_small_model(tmp_path / "best")
    naming = Naming("small", {"epochs": "1"}, "shelf")
    with recorder(store) as record:
        first, second = (log_model(folder, naming) for _ in range(2))
        assert first == second
        assert len(store.client.search_model_versions("name='shelf'")) == 1
        store.client.delete_logged_model(first)
        assert log_model(folder, naming) != first
    assert record.warnings == []
    assert "registered model" not in capfd.readouterr().err


def test_a_model_whose_name_mlflow_does_not_allow_is_logged_under_one_that_it_does(
    store: Store, tmp_path: Path
) -> None:
    with recorder(store):
        model_id = log_model(save_small_model(tmp_path / "best"), Naming("timm/small:a.b", {"epochs": "3"}))
    logged = store.client.get_logged_model(model_id)
    assert logged.name == "timm-small-a-b"
    assert logged.params["epochs"] == "3"


def test_the_settings_of_a_model_survive_the_journal_and_other_text_is_refused() -> None:
    naming = Naming("small", {"epochs": "1"}, "shelf")
    assert Naming.from_json(naming.to_json()) == naming
    for text in ("", "{}", '{"name": "x", "params": 3}'):
        with pytest.raises(TrackingError, match="record of the model is damaged"):
            Naming.from_json(text)


def test_equal_weights_become_one_file_and_others_are_not_changed(store: Store, tmp_path: Path) -> None:
    own = save_small_model(tmp_path / "best")
    with recorder(store) as record:
        log_model(own, Naming("small", {}))
    run = store.find(record.run_id)
    (logged,) = Path("mlruns").rglob(f"models/**/{WEIGHTS_FILE}")
    other = save_small_model(tmp_path / "other", epoch=2)
    before = (other / WEIGHTS_FILE).read_bytes()
    share_weights(store, run, other)
    assert not logged.samefile(other / WEIGHTS_FILE)
    assert (other / WEIGHTS_FILE).read_bytes() == before
    share_weights(store, run, own)
    assert logged.samefile(own / WEIGHTS_FILE)
    shutil.rmtree(own)
    assert logged.stat().st_size > 0
