import pytest

from tests.support.screens import make_screen, printed
from tl_cli.api.model_list import ModelList, PulledModels
from tl_cli.models.list.families import Family
from tl_cli.models.list.rows import Row
from tl_cli.ui.terminal.model_tables import print_models, print_pulled

RESNET, OTHER = Family("ResNet", 2015, "Residual connections."), Family("Other", None, "Unknown.")
ROWS = (
    Row("resnet18", "torchvision", RESNET, 224, 0.698, True, 11_689_512, 1_814_073_344),
    Row("timm/a_rather_long_name_of_a_model.with_a_tag", "timm", OTHER, 32, None, None, None, None),
)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("by_family", [True, False])
def test_the_list_of_models_fits_and_unknown_values_are_dashes(width: int, by_family: bool) -> None:
    screen = make_screen(width)
    print_models(screen, ModelList(ROWS, 7, more_in_timm=1000), by_family=by_family)
    text = printed(screen)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    row = next(line.split() for line in lines if "resnet18" in line)
    assert row[1] == "11.7M"
    assert "69.8%" in row
    assert "—" in next(line for line in lines if "timm/a" in line)
    assert ("ResNet, 2015  Residual connections." in lines) == by_family
    assert "2 of 7 shown" in text
    assert "timm has 1,000 more" in text
    assert ("1.81G" in text, "224" in text, "here" in text) == (width >= 60, width >= 60, width >= 72)


def test_an_ascii_terminal_gets_ascii() -> None:
    screen = make_screen(120, encoding="ascii")
    print_models(screen, ModelList(ROWS, 2), by_family=False)
    assert printed(screen).count(" -") == 4


def test_failed_downloads_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = make_screen(80)
    print_pulled(screen, PulledModels(("resnet18",), ("no network",)))
    assert printed(screen) == "resnet18 is on this machine\n"
    assert "no network" in capsys.readouterr().err
