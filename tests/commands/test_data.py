import json

import pytest

from tl_cli.data.catalogue import SETS


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_every_set_is_listed_in_any_terminal(tl, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    result = tl("data")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= int(width)
    assert all(f"{name} " in result.out for name in SETS)


def test_json_says_what_is_fetched(tl) -> None:
    rows = {row["name"]: row for row in json.loads(tl("data", "--json").out)}
    assert rows["cifar10"]["images"] == {"train": 50_000, "test": 10_000}
    assert rows["mnist"]["mirrors"] is False
    assert set(rows) == set(SETS)
