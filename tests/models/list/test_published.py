from pathlib import Path

import pytest
import torch

from tl_cli.models.list.published import hub_folder


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_folder_of_weights_is_that_of_torch(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert hub_folder() == Path(torch.hub.get_dir())
