"""Shows an exported model: what was written, how to use it, and how it was checked."""

from rich.console import Console

from tl_cli.api.export_run import Exported
from tl_cli.text import json_text
from tl_cli.ui.terminal.console import plain


def print_exported(exported: Exported, console: Console, *, as_json: bool) -> None:
    """Print what was written, or its JSON."""
    if as_json:
        print(json_text(exported.to_dict()))
        return
    if exported.check is None:
        console.print(plain(f"{exported.path}: the saved model of {exported.model}", limit=4000), soft_wrap=True)
        return
    size, side, check = (exported.bytes or 0) / 1e6, exported.input_size, exported.check
    console.print(plain(f"{exported.path}: {size:.1f} MB, any batch size", "bold", limit=4000), soft_wrap=True)
    console.print(plain(f"input   images: float32 (batch, 3, {side}, {side}), RGB, 0 to 255"))
    console.print(plain(f"output  logits: float32 (batch, {len(exported.classes)})"))
    console.print(plain(f"probabilities are softmax(logits / {exported.temperature:.4g})"))
    location = "in the file's metadata" if exported.format == "onnx" else "in the file's extra files"
    console.print(plain(f"classes, preprocessing and temperature are {location}"))
    images = f"{check.images} of its images" if check.are_real else "noise, because its images are not available"
    console.print(plain(f"checked on {images}: logits differ from PyTorch's by at most {check.difference:.1e}", "good"))
