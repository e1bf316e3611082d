"""``python -m tests.benchmarks``: the command line of the benchmarks, from the root of the project."""

import argparse
import tempfile
from pathlib import Path

import torch

from tests.benchmarks import accuracy, report
from tests.benchmarks.material import Material, PicturesError, write_pictures
from tests.benchmarks.rows import ROWS, Comparison
from tests.benchmarks.timing import Bench, print_progress

ACCURACY = "accuracy"
_TINY = {"rounds": 1, "count": 20, "batch_size": 8, "steps": 2}


def main(arguments: list[str] | None = None) -> None:
    """Measure the given rows (default: all but ``accuracy``), print a table, and write JSON if requested."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(options.rows)) or list(ROWS)
    if ACCURACY in names and options.images is None and not options.tiny:
        parser.error("accuracy needs --images DIR with CIFAR-10's train/CLASS/ and test/CLASS/")
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="tl-benchmarks-") as folder:
        bench = _bench(options, Path(folder))
        known = report.facts(bench)
        comparisons: list[Comparison] = []
        try:
            for name in names:
                print_progress(name)
                comparisons += _accuracy(options, bench) if name == ACCURACY else ROWS[name](bench)
        except PicturesError as error:
            parser.error(str(error))
    print(report.as_text(known, comparisons))
    if options.json:
        options.json.write_text(report.as_json(known, comparisons), encoding="utf-8")


def _bench(options: argparse.Namespace, folder: Path) -> Bench:
    given = {name: getattr(options, name) for name in ("rounds", "count", "batch_size", "steps")}
    return Bench(
        material=Material(folder, options.images),
        **{**given, **(_TINY if options.tiny else {})},
        threads=options.threads,
        device=options.device,
        size=options.size,
        blog_workers=options.blog_workers,
        is_tiny=options.tiny,
    )


def _accuracy(options: argparse.Namespace, bench: Bench) -> list[Comparison]:
    images = options.images
    if images is None:
        images = bench.material.folder / "colours"
        write_pictures(images, {"train": bench.count, "test": bench.count})
    return accuracy.measure(bench, images, options.target, 1 if options.tiny else options.seeds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="tl beside the blog's loop, in one process, in turns. The table goes to stdout.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", type=_row, help=", ".join([*ROWS, ACCURACY]))
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="32 x 32 JPEGs in CLASS/, or train/CLASS/ and test/CLASS/; made ones if not given",
    )
    parser.add_argument("--rounds", type=_count, default=3, help="turns of each side (3)")
    parser.add_argument("--count", type=_count, default=10_000, help="training images (10,000); CIFAR-10 has 50,000")
    parser.add_argument("--batch-size", type=_count, default=64, help="images a step, on every side (64)")
    parser.add_argument("--steps", type=_count, default=40, help="steps after which a slow side is extrapolated (40)")
    parser.add_argument("--threads", type=_count, help="of torch on every side; each side's own choice if not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=_count, help="input size of the rows that fine-tune (32)")
    parser.add_argument("--blog-workers", type=int, default=0, help="processes of the blog's DataLoader (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round, with versions and machine")
    parser.add_argument("--tiny", action="store_true", help="only see that everything works")
    long = parser.add_argument_group("accuracy (an hour on a CPU)")
    choices = [record.accuracy for record in accuracy.RECORDS]
    long.add_argument("--target", type=float, action="append", default=[], choices=choices, help="only this record")
    long.add_argument("--seeds", type=_count, default=3, help="trainings of each record (3)")
    return parser


def _row(text: str) -> str:
    if text not in (*ROWS, ACCURACY):
        raise argparse.ArgumentTypeError(f"no row is called {text!r}; there are {', '.join([*ROWS, ACCURACY])}")
    return text


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    main()
