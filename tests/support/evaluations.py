"""Evaluations made from logits, without a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tl_cli.api.evaluation_run import Evaluation
from tl_cli.contract import Calibration, DataSpec, ModelCard, Preprocessing, Split, WeightsTag
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.measure import Measured
from tl_cli.evaluation.report import EvaluationReport, make_report


def evaluation_of(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Return the evaluation of grey images with these logits (N, num_classes) and labels (N,)."""
    pixels = torch.full((len(labels), 3, 20, 30), 128, dtype=torch.uint8)
    images = PackedImages(Names.of(f"{number}.png" for number in range(len(labels))), labels.numpy(), pixels)
    labelled = LabelledLogits(logits, labels)
    split = Split(count=len(labels), digest="d")
    measured = Measured(labelled, images, "/data", "test", split, True, False, None, (), "", ())
    return evaluation(measured, make_report(labelled, Calibration()), "model", classes)


def evaluation(measured: Measured, report: EvaluationReport, name: str, classes: Sequence[str]) -> Evaluation:
    """Return the evaluation of a model of that name."""
    card = ModelCard(
        architecture="resnet18", head=("fc",), classes=tuple(classes), preprocessing=Preprocessing(resize=32, crop=32),
        weights=WeightsTag(name="none"), data=DataSpec(source="/data", layout="classes"), recipe="default", epoch=1,
    )  # fmt: skip
    return Evaluation(name, card, measured, report, None)
