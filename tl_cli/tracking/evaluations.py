"""Adds later evaluations to a recorded run: scores, files and the images that they were measured on."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from tl_cli.contract import DataSpec, Split, SplitName
from tl_cli.data.dataset import BUILT_IN
from tl_cli.evaluation.measure import Measured
from tl_cli.evaluation.scores import Results
from tl_cli.tracking.overview import refresh_overviews
from tl_cli.tracking.recorded import CONTEXT_TAG, SCHEME_TAG, Run
from tl_cli.tracking.store import Store

EVALUATIONS = "eval"
TEST_LOGITS = "test_logits.npz"
NOTE_TAG = "mlflow.note.content"


def log_evaluation(
    store: Store, run: Run, measured: Measured, numbers: Mapping[str, float], files: Sequence[Path]
) -> str:
    """Add an evaluation to a run; return the folder of its artifacts.

    Scores on the run's test images, if they have not changed and are computed as in training, are
    recorded under ``test/``, others under ``eval/DATA-PART-DIGEST/``, so that a name always means the same images. A
    score that is already recorded is kept.

    Raises:
        TrackingError: the store cannot be used, or was copied or moved.
    """
    store.check_place(run)
    label = evaluation_name(measured)
    prefix = "test" if _is_test(measured) else f"{EVALUATIONS}/{label}"
    dataset = dataset_of(in_letters(f"{Path(measured.source).name}-{measured.part}"), measured.source, measured.split)
    model_id = next(iter(run.model_ids), None)
    now = int(time.time() * 1000)
    points = [
        Metric(f"{prefix}/{name}", value, now, 0, model_id, dataset.name, dataset.digest, run.info.run_id)
        for name, value in numbers.items()
        if f"{prefix}/{name}" not in run.data.metrics
    ]
    folder = f"{EVALUATIONS}/{label}"
    with store.translated_errors():
        store.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag(CONTEXT_TAG, "evaluation")])])
        if points:
            store.client.log_batch(run.info.run_id, metrics=points)
    _log_files(store, run, folder, files)
    return folder


def is_first_test(run: Run, measured: Measured) -> bool:
    """Whether this is the first test of a run that could not be tested at its end."""
    return _is_test(measured) and Results.of(run.data.metrics).test_accuracy is None


def set_note(store: Store, run_id: str, text: str) -> None:
    """Set a run's description (Markdown) and keep what a person wrote below it.

    Args:
        text: the description; its last line must always be the same, since the old one is recognised by it.
    """
    text = text.strip()
    old = store.client.get_run(run_id).data.tags.get(NOTE_TAG, "")
    _, is_ours, below = old.partition(text.rpartition("\n")[2])
    by_user = (below if is_ours else old).strip()
    store.client.set_tag(run_id, NOTE_TAG, f"{text}\n\n{by_user}" if by_user else text)


def log_first_test(store: Store, run: Run, accuracy: float, logits: Path) -> None:
    """Complete the record of a run that could not be tested at its end.

    Raises:
        TrackingError: the store cannot be used.
    """
    result = f"**{accuracy:.2%} on test images**, measured by tl eval after training"
    note = "\n\n".join(filter(None, [result, run.data.tags.get(NOTE_TAG)]))
    with store.translated_errors():
        store.client.log_artifact(run.info.run_id, str(logits), EVALUATIONS)
        store.client.set_tag(run.info.run_id, NOTE_TAG, note)
        refresh_overviews(store, [run.info.experiment_id])


def log_inspection(store: Store, run: Run, view: str, files: Sequence[Path]) -> None:
    """Record the files of an inspection of a run's model, under ``inspect/VIEW/``.

    Raises:
        TrackingError: the store cannot be used, or was copied or moved.
    """
    store.check_place(run)
    _log_files(store, run, f"inspect/{view}", files)


def _log_files(store: Store, run: Run, folder: str, files: Sequence[Path]) -> None:
    with store.translated_errors():
        for path in files:
            store.client.log_artifact(run.info.run_id, str(path), folder)


def dataset_inputs(spec: DataSpec) -> list[DatasetInput]:
    """Return the parts of a data set as the inputs of a run: training, validation, testing."""
    contexts: dict[SplitName, str] = {"train": "training", "val": "validation", "test": "testing"}
    return [
        DatasetInput(
            dataset,
            [InputTag(CONTEXT_TAG, contexts[part]), InputTag(SCHEME_TAG, spec.splits[part].scheme)],
        )
        for part, dataset in datasets_of(spec).items()
    ]


def datasets_of(spec: DataSpec) -> dict[SplitName, Dataset]:
    """Return the parts of a data set as MLflow's data sets, with names and digests."""
    name = Path(spec.source).name
    return {part: dataset_of(f"{name}-{part}", spec.source, split) for part, split in spec.splits.items()}


def dataset_of(name: str, source: str, split: Split) -> Dataset:
    """Return one part of a data set as MLflow records it."""
    return Dataset(
        name=name,
        # MLflow keeps at most 36 characters of a digest.
        digest=split.digest[:16],
        source_type="code" if source in BUILT_IN else "local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"num_rows": split.count, "sha256": split.digest}),
    )


def evaluation_name(measured: Measured) -> str:
    """Return the name of an evaluation in characters that MLflow allows: ``test``, ``photos-all-3f2a91c0``."""
    if _is_test(measured):
        return "test"
    other = f"-{measured.otherwise}" if measured.otherwise else ""
    return in_letters(f"{Path(measured.source).name}-{measured.part}-{measured.split.digest[:8]}{other}")


def _is_test(measured: Measured) -> bool:
    return measured.is_own and measured.part == "test" and not measured.is_changed and not measured.otherwise


def in_letters(name: str) -> str:
    """Return a name in characters that MLflow allows anywhere; a long one keeps its end."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-100:]
