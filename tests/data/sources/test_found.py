import pytest

from tl_cli.data.sources.found import Faults, Found
from tl_cli.errors import DataError


@pytest.mark.parametrize(
    ("parts", "layout"),
    [(("train",), "classes"), (("test", "train"), "train/test"), (("val", "train", "test"), "train/val/test")],
)
def test_the_layout_follows_from_the_parts(parts: tuple[str, ...], layout: str) -> None:
    assert Found(("a",), dict.fromkeys(parts)).layout == layout


def test_a_fault_is_refused_unless_all_are_collected() -> None:
    with pytest.raises(DataError, match="^one class only$"):
        Faults(lenient=False).add("one class only")
    faults = Faults(lenient=True)
    faults.add("one class only")
    faults.add("no images")
    assert faults.named == ["one class only", "no images"]
