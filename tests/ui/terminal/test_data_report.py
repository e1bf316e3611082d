from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import COLOURS, write_pictures
from tests.support.screens import make_screen, shown
from tl_cli.api.data_check import CheckRequest, check_data
from tl_cli.ui.terminal.data_report import print_findings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 4, 4 and 5 images; one of the last is grey, one file is empty."""
    write_pictures(tmp_path / "train", COLOURS, 4)
    write_pictures(tmp_path / "test", COLOURS, 2)
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(tmp_path / "train" / "red" / "flat.png")
    (tmp_path / "train" / "red" / "empty.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_findings_fit_the_terminal(photos: Path, width: int) -> None:
    report = check_data(CheckRequest(str(photos), labels=False))
    screen = make_screen(width)
    print_findings(screen, report.findings, report.doubts)
    lines = shown(screen).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for count, what in (("1 file", "cannot be decoded"), ("19 pictures of 32 x 32", "pixels"), ("1 level", "7 to 7")):
        assert count in text
        assert what in text
    # The largest class comes first, with the counts of both parts.
    assert lines[1].split()[:3] == ["red", "6", "2"]


def test_many_classes_are_cut_in_the_middle(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"c{number:02d}": (9, 9, number) for number in range(40)}, 2)
    report = check_data(CheckRequest(str(tmp_path), labels=False))
    screen = make_screen(80)
    print_findings(screen, report.findings, None)
    assert "and 10 classes between these; --json has all" in shown(screen)
