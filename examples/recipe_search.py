"""Compare settings of ``tl train`` by validation accuracy over several seeds, and print the table as Markdown.

    python recipe_search.py ~/cifar10-jpeg/train --seeds 3 --together 2

The folder holds one folder a class. Of CIFAR-10's 50,000 training images 8,950 train and 5,000 validate; the test
images are not looked at. Runs are recorded in the current folder, in the experiment ``recipes``; those that are
complete are not repeated.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

import mlflow  # noqa: TID251 (reads what was recorded, as anyone may)
from mlflow.entities import Run  # noqa: TID251

MODEL = "efficientnet_lite0"
PART = ["--limit", "15500", "--val-fraction", "0.3226"]
# What the settings start from, and change.
START = ["--input-size", "64", "--augment", "flip-shift", "--unfreeze-lr", "6e-4"]
EPOCHS = ["--freeze-epochs", "5", "--epochs", "8"]
# One thread each and one precision, so that nothing but the setting differs.
COMPUTE = ["--threads", "1", "--precision", "bf16", "--layout", "channels-last"]
SETTINGS = {
    "the starting point": "",
    "rate 3e-4": "--unfreeze-lr 3e-4",
    "rate 1e-3": "--unfreeze-lr 1e-3",
    "rate 1.5e-3": "--unfreeze-lr 1.5e-3",
    "rate 1e-3, layer decay 0.9": "--unfreeze-lr 1e-3 --layer-decay 0.9",
    "rate 1.5e-3, layer decay 0.8": "--unfreeze-lr 1.5e-3 --layer-decay 0.8",
    "BatchNorm training": "--bn train",
    "cosine": "--schedule cosine",
    "flip alone": "--augment flip",
    "RandAugment": "--auto-augment randaugment --auto-magnitude 5",
    "MixUp 0.2": "--mixup 0.2",
    "averaged weights": "--ema 0.99",
    "no label smoothing": "--label-smoothing 0",
    "CIFAR's statistics": "--mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616",
    "batch 32": "--batch-size 32",
    "batch 128": "--batch-size 128",
    "head 1 epoch": "--freeze-epochs 1 --epochs 4",
    "first two stages frozen": "--freeze-until blocks.2",
    "fp32": "--precision fp32",
    "96 px": "--input-size 96",
    "96 px, 1 epoch": "--input-size 96 --epochs 6",
    "128 px, 1 epoch": "--input-size 128 --epochs 6",
    "64 px, 6 epochs": "--epochs 11",
    "flip alone, 64 px, 6 epochs": "--augment flip --epochs 11",
}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder with one folder a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--together", type=int, default=1, help="runs side by side, a core each")
    parser.add_argument("--only", action="append", choices=SETTINGS, metavar="NAME", help="one of the settings")
    asked = parser.parse_args()
    names = asked.only or list(SETTINGS)
    complete = runs()
    wanted = [(name, seed) for seed in range(asked.seeds) for name in names if title(name, seed) not in complete]
    with ThreadPoolExecutor(asked.together) as pool:
        list(pool.map(lambda each: train(asked.data, *each), wanted))
    complete = runs()
    rows = [
        (name, [complete[title(name, seed)] for seed in range(99) if title(name, seed) in complete]) for name in names
    ]
    print("| setting | flags | validation accuracy | mean | minutes |\n|---|---|---|---|---|")
    for name, found in sorted((row for row in rows if row[1]), key=lambda row: -mean(map(accuracy, row[1]))):
        each = " ".join(f"{accuracy(run):.1%}" for run in found)
        minutes = mean((run.info.end_time - run.info.start_time) / 60_000 for run in found)
        print(f"| {name} | `{SETTINGS[name]}` | {each} | {mean(map(accuracy, found)):.2%} | {minutes:.1f} |")


def title(name: str, seed: int) -> str:
    """Return what the run of a setting is called."""
    return f"{name}, seed {seed}"


def train(data: str, name: str, seed: int) -> None:
    """Train once; a run that fails is told and left out."""
    command = [sys.executable, "-m", "tl_cli", "train", MODEL, "--data", data, "--quiet"]
    command += [*PART, *START, *EPOCHS, *COMPUTE, *SETTINGS[name].split(), "--seed", str(seed)]
    command += ["--experiment", "recipes", "--run-name", title(name, seed)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603


def runs() -> dict[str, Run]:
    """Return the complete runs by name."""
    found = mlflow.search_runs(experiment_names=["recipes"], filter_string="status = 'FINISHED'", output_format="list")
    return {str(run.info.run_name): run for run in found}


def accuracy(run: Run) -> float:
    """Return the best accuracy on validation, a fraction."""
    return float(run.data.metrics["best/val_accuracy"])


if __name__ == "__main__":
    main()
