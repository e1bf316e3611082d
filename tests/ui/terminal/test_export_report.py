import json
from pathlib import Path

import pytest

from tests.support.screens import make_screen, printed
from tl_cli.api.export_run import Check, Exported
from tl_cli.ui.terminal.export_report import print_exported


def exported(check: Check | None) -> Exported:
    return Exported("run", "onnx", Path("/m.onnx"), 4_200_000, 224, ("a", "b"), 1.25, check)


def test_an_exported_file_is_described_with_its_check() -> None:
    screen = make_screen(100)
    print_exported(exported(Check(16, True, 1.5e-6)), screen, as_json=False)
    text = printed(screen)
    for part in ("4.2 MB", "(batch, 3, 224, 224)", "(batch, 2)", "softmax(logits / 1.25)", "in the file's metadata",
                 "16 of its images", "at most 1.5e-06"):  # fmt: skip
        assert part in text


def test_a_folder_is_not_checked_and_json_is_the_only_output(capsys: pytest.CaptureFixture[str]) -> None:
    screen = make_screen(100)
    print_exported(exported(None), screen, as_json=False)
    assert printed(screen) == "/m.onnx: the saved model of run\n"
    print_exported(exported(None), screen, as_json=True)
    assert json.loads(capsys.readouterr().out)["classes"] == ["a", "b"]
