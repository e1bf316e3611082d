"""The list of architectures has the numbers of torchvision's own metadata."""

import pytest
from torchvision.models import ResNet18_Weights

from tl_cli import Observer, list_architectures, pull_weights
from tl_cli.errors import UnknownModelError, UsageError
from tl_cli.models.list.rows import ModelFilter


class Counting(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None]] = []

    def progress(self, what: str, done: int, total: int | None, unit: str = "items") -> None:
        self.seen.append((what, done, total))


def test_size_cost_and_accuracy_are_those_of_torchvision() -> None:
    observer = Counting()
    result = list_architectures(ModelFilter("resnet18", libraries=("torchvision",)), observer)
    rows = {row["name"]: row for row in result.to_list()}
    meta = ResNet18_Weights.DEFAULT.meta
    row = rows["resnet18"]
    assert row["parameters"] == meta["num_params"]
    assert row["multiply_adds"] == pytest.approx(1e9 * meta["_ops"], rel=1e-3)
    assert row["imagenet_top1"] == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100)
    assert (row["library"], row["input_size"], result.total) == ("torchvision", 224, len(rows))
    assert observer.seen[0] == ("counting", 0, len(rows))
    assert result.more_in_timm > 500


def test_a_limit_cuts_the_rows_and_not_the_total() -> None:
    result = list_architectures(ModelFilter("vgg", libraries=("torchvision",)), Observer(), sort="name", limit=2)
    assert [row.name for row in result.rows] == ["vgg11", "vgg11_bn"]
    assert result.total == 8


def test_a_filter_that_excludes_everything_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no model has 'resnet-18' in its name or family\. Did you mean resnet18"):
        list_architectures(ModelFilter("resnet-18"), Observer())
    with pytest.raises(UsageError, match="no model of torchvision passes the pattern and the filters"):
        list_architectures(ModelFilter("vgg", ("torchvision",), max_parameters=1000), Observer())


def test_installed_weights_need_no_download_and_an_unknown_name_stops_all() -> None:
    pulled = pull_weights(["efficientnet_lite0"])
    assert pulled.to_dict() == {"pulled": ["efficientnet_lite0"], "failures": []}
    with pytest.raises(UnknownModelError):
        pull_weights(["efficientnet_lite0", "nothing-of-this-name"])
