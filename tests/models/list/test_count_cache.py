import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tl_cli.models.list.count_cache import CountCache, Counts


def test_counts_are_kept_and_not_counted_again(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    with CountCache(path) as cache:
        first = cache.count("squeezenet1_1", "torchvision", 224)
    assert first is not None
    assert first.parameters == 1_235_496
    assert first.multiply_adds / 1e9 == pytest.approx(0.349, rel=0.01)  # both as torchvision publishes them
    key = f"squeezenet1_1@224 torchvision {version('torchvision')}"
    assert json.loads(path.read_text()) == {key: [first.parameters, first.multiply_adds]}
    # A counted architecture would not have one parameter.
    path.write_text(json.dumps({key: [1, 2]}))
    with CountCache(path) as cache:
        assert cache.count("squeezenet1_1", "torchvision", 224) == Counts(1, 2)


@pytest.mark.parametrize("content", ["", "[]", '{"resnet18@224 torchvision 0": "x"}', "\x00"])
def test_a_damaged_cache_is_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(content)
    with CountCache(tmp_path / "counts.json") as cache:
        assert cache.count("squeezenet1_1", "torchvision", 224) is not None
