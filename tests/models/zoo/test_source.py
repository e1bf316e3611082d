from torch import nn

from tl_cli.contract import Preprocessing, WeightsTag
from tl_cli.io.download import Missing, Progress, silent
from tl_cli.models.list.published import Architecture
from tl_cli.models.zoo.source import Source
from tl_cli.models.zoo.weights import Pretrained


class OneModel(Source):
    """A library of one linear model that uses the methods of ``Source``."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def names(self) -> list[str]:
        return ["line"]

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        return nn.Linear(3, num_classes)

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        self.fetched.append(spec)
        return Pretrained(nn.Linear(3, 10).state_dict(), WeightsTag(name="line:default"))

    def missing(self, name: str, spec: str) -> Missing | None:
        return None

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        return Preprocessing(resize=8, crop=8)

    def published(self, name: str) -> list[str]:
        return ["DEFAULT"]

    def about(self, name: str) -> Architecture:
        return Architecture(name, name, "line", 8, None, None)

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        return 8, 8


def test_a_library_declares_only_what_is_unusual() -> None:
    source = OneModel()
    assert (source.has("line"), source.has("curve")) == (True, False)
    assert source.architecture("line") == "line"
    assert source.options_for("line", 8) == {}
    model = source.build("line", 10, {}, None)
    found = source.pretrained("line", "default", silent)
    model.load_state_dict(source.adapt("line", model, found, {}))
    assert model.weight.equal(found.state["weight"])


def test_fetch_downloads_the_best_weights() -> None:
    source = OneModel()
    source.fetch("line", silent)
    assert source.fetched == ["default"]
