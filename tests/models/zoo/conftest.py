from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.server import Server


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The Hugging Face hub on loopback, with an empty cache."""
    server.files["/"] = server.files["/api/agent-harnesses"] = b"{}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return server
