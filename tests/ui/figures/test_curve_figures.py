import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.full_disk import largest_file
from tests.support.histories import history
from tl_cli.errors import StorageError
from tl_cli.training.history import History
from tl_cli.ui.figures.curve_figures import save_contact_sheet, save_curves, save_panels
from tl_cli.ui.panels import Line, Panel, PanelOptions, panels


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_ending_of_the_file_is_its_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"curves.{ending}"
    save_panels(panels([history()]), path, "a run")
    beginning = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(beginning)


def test_runs_make_two_figures_and_metrics_make_one(tmp_path: Path) -> None:
    names = ["loss_by_step.png", "accuracy_and_loss_by_epoch.png"]
    assert [path.name for path in save_curves([history()], PanelOptions(), tmp_path)] == names
    several = save_curves([history(name="a"), history(name="b")], PanelOptions(), tmp_path, "2-")
    assert [path.name for path in several] == [f"2-{name}" for name in names]
    one = History("x", others={"f1": [(1, 0.5)]})
    assert [path.name for path in save_curves([one], PanelOptions(metrics=("f1",)), tmp_path)] == ["metrics.png"]
    assert all(Image.open(path).size[0] > 500 for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "points", [[], [(1.0, 2.0)], [(1.0, math.nan)], [(1.0, -1.0), (2.0, math.inf)], [(1.0, 1e308)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_no_series_breaks_a_figure(points: list[tuple[float, float]], log: bool, tmp_path: Path) -> None:
    save_panels([Panel("x", [Line(points, "blue", label="y")], log=log)], tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 300


def ink(path: Path) -> int:
    return int((np.asarray(Image.open(path).convert("L")) < 128).sum())


def test_a_name_in_chinese_is_drawn_in_charts_and_under_images(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("cat", "猫"), ("dog", "犬"), ("none", "\U000e0fff")):
        save_panels([Panel(text * 8, [Line([(1.0, 1.0)], "blue")])], tmp_path / f"{name}.png", text)
        save_contact_sheet([torch.zeros(3, 8, 8, dtype=torch.uint8)], [text * 4], tmp_path / f"{name}_sheet.png")
    for kind in ("", "_sheet"):
        cat, dog = (Image.open(tmp_path / f"{name}{kind}.png").convert("L") for name in ("cat", "dog"))
        # Two letters that no font has would be two equal boxes.
        assert cat.size != dog.size or cat.tobytes() != dog.tobytes()
    captured = capfd.readouterr()
    assert "Glyph" not in captured.err
    assert "findfont" not in captured.err


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_that_does_not_fit_the_disk_keeps_the_former_one(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"curves.{ending}"
    path.write_bytes(b"before")
    with largest_file(4000), pytest.raises(StorageError, match=r"cannot write .*curves"):
        save_panels(panels([history()]), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_panels(panels([history()]), tmp_path / "file" / "x.png")


@pytest.mark.parametrize(
    "backend",
    [
        "nonsense",
        pytest.param("module://matplotlib_inline.backend_inline", marks=pytest.mark.slow),
        pytest.param("tkagg", marks=pytest.mark.slow),
    ],
)
def test_figures_are_drawn_with_any_backend_in_the_environment(backend: str, tmp_path: Path) -> None:
    program = """
import sys
from contextlib import suppress
from pathlib import Path
from tl_cli.cli.app import main
folder, sys.argv = sys.argv[1], ["tl", "--version"]
with suppress(SystemExit):
    main()
from tl_cli.training.history import History
from tl_cli.ui.figures.curve_figures import save_curves
from tl_cli.ui.panels import PanelOptions
save_curves([History("run", losses=[(1, 0.5), (2, 0.4)])], PanelOptions(), Path(folder))
import matplotlib
print(matplotlib.get_backend())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()[-1].lower(), done.stderr) == (0, "agg", "")
    assert len(list(tmp_path.glob("*.png"))) == 2
