import pytest
import timm
import torchvision

from tl_cli.models.list.completion import UNSUPPORTED, complete, is_architecture, registered


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_names_for_completion_are_those_of_the_library(library: str) -> None:
    theirs = (
        torchvision.models.list_models(module=torchvision.models) if library == "torchvision" else timm.list_models()
    )
    assert sorted(registered(library)) == sorted(theirs)


def test_completion_offers_timm_once_its_prefix_is_begun() -> None:
    assert complete("resnet1") == ["resnet101", "resnet152", "resnet18"]
    assert complete("ti") == ["timm/"]
    assert "timm/resnet18" in complete("timm/resnet18")
    assert len(complete("")) == 84


def test_names_of_architectures_are_recognized_with_or_without_a_tag() -> None:
    known = ["resnet18", "efficientnet_lite0", "timm/resnet18", "timm/resnet18.a1_in1k"]
    assert [name for name in (*known, "resnt18", "timm/resnt18", "resnet18.a1_in1k") if is_architecture(name)] == known


def test_architectures_that_are_left_out_exist_in_timm() -> None:
    assert set(UNSUPPORTED) <= set(timm.list_models())
    assert all(reason.startswith(("it ", "its ")) for reason in UNSUPPORTED.values())
