"""What an inspection of a model takes and returns; nothing is computed here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tl_cli.api.model_lookup import Target
from tl_cli.choices import DeviceName
from tl_cli.contract import Preprocessing
from tl_cli.evaluation.measure import Part as SplitChoice
from tl_cli.inspection.drift import LayerDrift
from tl_cli.inspection.features import Neighbourhood
from tl_cli.inspection.freeze_plan import ByName, Part
from tl_cli.inspection.residual_effects import ResidualReport, explain
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.summary import Node, describe_preprocessing, head_reason
from tl_cli.text import plain_data
from tl_cli.training.config import TrainConfig
from tl_cli.training.strategy import Group, Strategy


@dataclass(frozen=True, slots=True)
class TreeView:
    """The modules of a model.

    Attributes:
        num_classes: outputs of the head; None is a saved model's own, 10 for an architecture.
    """

    num_classes: int | None = None


@dataclass(frozen=True, slots=True)
class FreezePlanView:
    """What trains in each phase of a run.

    Attributes:
        settings: of the training, by field of ``TrainConfig``; they override those of a run.
        config: a TOML file of settings.
        num_classes: as in ``TreeView``, but for an architecture None is the number of classes of the data.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    config: Path | None = None
    num_classes: int | None = None


@dataclass(frozen=True, slots=True)
class ResidualsView:
    """The residual blocks of a model, measured on images.

    Attributes:
        ablate: also measure predictions without each branch, and with half of it.
        against: ``pretrained`` or a run, to compare with; None compares with nothing.
        image: a picture file or the index of an image, whose x, F(x) and x + F(x) are returned for one block.
        block: which block; None is the first.
    """

    ablate: bool = True
    against: str | None = None
    image: str | None = None
    block: str | None = None


@dataclass(frozen=True, slots=True)
class DriftView:
    """How far training moved each layer of a run's model.

    Attributes:
        against: ``pretrained`` or a run.
    """

    against: str = "pretrained"


@dataclass(frozen=True, slots=True)
class FeaturesView:
    """The features that reach the head: nearest neighbours, and a map."""


@dataclass(frozen=True, slots=True)
class CamView:
    """Heatmaps (Grad-CAM) of picture files.

    Attributes:
        images: the files.
    """

    images: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class WorstView:
    """Heatmaps (Grad-CAM) of a run's most confident mistakes.

    Attributes:
        count: how many.
    """

    count: int = 9


View = TreeView | FreezePlanView | ResidualsView | DriftView | FeaturesView | CamView | WorstView


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    """Which model to inspect, what to show of it, and which images to run it on.

    Attributes:
        model: an architecture, a run, or a saved-model folder.
        view: what to show.
        weights: of an architecture: a name, a file, or ``none``.
        data: folder, CSV, archive or published set; None is a run's own, and for an architecture a few photographs.
        split: None is validation.
        data_dir: where downloaded sets are kept.
        images: maximum number of images; None chooses.
        input_size: side of an architecture's input in pixels; None is the weights' own.
        device: where to compute.
        workers: image-loading threads; None is one per core, at most 8.
        tracking_uri: MLflow store or server; None is the default one.
        needs_run: whether to refuse a model without a run, since results are to be logged.
    """

    model: str
    view: View = TreeView()
    weights: str | None = None
    data: str | None = None
    split: SplitChoice | None = None
    data_dir: str | None = None
    images: int | None = None
    input_size: int | None = None
    device: DeviceName = "auto"
    workers: int | None = None
    tracking_uri: str | None = None
    needs_run: bool = False


@dataclass(frozen=True, slots=True)
class _Result:
    """Fields of all results.

    Attributes:
        title: name of the model for display.
        model: name of the architecture.
        target: the saved model; None for an architecture.
    """

    name: ClassVar[str]
    title: str
    model: str
    target: Target | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeResult(_Result):
    """The modules of a model, with output shapes, parameters, MACs and memory.

    Attributes:
        num_classes: outputs of the head.
        head: qualified names of the modules that produce the classes.
        preprocessing: from a picture to the input.
        root: the tree.
        notes: classes, weights and accuracy of a saved model, in sentences.
    """

    name: ClassVar[str] = "tree"
    num_classes: int
    head: tuple[str, ...]
    preprocessing: Preprocessing
    root: Node
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --json`` prints."""
        return {
            "model": self.model,
            "classes": self.num_classes,
            "input_size": self.preprocessing.crop,
            "head": list(self.head),
            "why_head": head_reason(self.root),
            "preprocessing": {**plain_data(self.preprocessing), "in_words": describe_preprocessing(self.preprocessing)},
            "tree": plain_data(self.root),
        }

    def _repr_html_(self) -> str:
        return f"<h4>{escape(self.title)}</h4>{_html(self.root, is_open=True)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezePlanResult(_Result):
    """What trains in each phase, at which learning rates, and the effect of freezing by name.

    Attributes:
        config: the settings of the training.
        strategy: layers and phases.
        parts: of the model, with what trains in each phase.
        groups: of the optimizer's parameters.
        by_name: the effect of freezing all parameters without ``fc`` in their name.
    """

    name: ClassVar[str] = "freeze_plan"
    config: TrainConfig
    strategy: Strategy
    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    by_name: ByName

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --freeze-plan --json`` prints."""
        return {
            "model": self.model,
            "head": list(self.strategy.classifier.head),
            "phases": [plain_data(phase) for phase in self.strategy.phases],
            "parts": [plain_data(part) for part in self.parts],
            "parameter_groups": [plain_data(group) for group in self.groups],
            "frozen_layers": self.strategy.frozen_layers,
            "freezing_by_name": plain_data(self.by_name),
        }


@dataclass(frozen=True, slots=True)
class BlockMaps:
    """One residual block on one picture.

    Attributes:
        residual: the block.
        picture: (3, S, S) uint8, resized and cut to the input.
        maps: x, F(x) and x + F(x), (C, h, w) float32 each.
    """

    residual: Residual
    picture: Tensor
    maps: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualsResult(_Result):
    """The residual blocks of a model, measured on images.

    Attributes:
        source: of the images; empty if there are no residual blocks.
        report: the measurements; None if there are no residual blocks.
        before: the measurements of the state to compare with.
        against: name of that state; empty if there is none.
        notes: in sentences.
        block: one block on one picture, if requested.
    """

    name: ClassVar[str] = "residuals"
    source: str = ""
    report: ResidualReport | None = None
    before: ResidualReport | None = None
    against: str = ""
    notes: tuple[str, ...] = ()
    block: BlockMaps | None = None

    @property
    def sentences(self) -> list[str]:
        """What the measurements mean."""
        return [*(explain(self.report) if self.report is not None else ()), *self.notes]

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --residual --json`` prints."""
        if self.report is None:
            return {"model": self.model, "residuals": []}
        return {
            "model": self.model,
            "source": self.source,
            "images": self.report.images,
            "accuracy": self.report.accuracy,
            "loss": self.report.loss,
            "residuals": _rows(self.report, self.before),
            "in_words": self.sentences,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftResult(_Result):
    """How far training moved each layer.

    Attributes:
        against: name of the earlier state.
        source: of the images.
        images: number of images on which outputs were compared.
        layers: in order of execution, the head last.
    """

    name: ClassVar[str] = "drift"
    against: str
    source: str
    images: int
    layers: tuple[LayerDrift, ...]

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --drift --json`` prints."""
        return plain_data(self, exclude=("title", "target"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesResult(_Result):
    """How well the features classify without the head, and a map of them.

    Attributes:
        source: of the images.
        ids: of the images on the map.
        images: number of images that were classified.
        classes: names, by label.
        neighbourhood: accuracies and map.
    """

    name: ClassVar[str] = "features"
    source: str
    ids: tuple[str, ...]
    images: int
    classes: tuple[str, ...]
    neighbourhood: Neighbourhood

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --features --json`` prints."""
        features = self.neighbourhood
        return {
            "model": self.model,
            "source": self.source,
            "images": self.images,
            "accuracy": features.by_head.value if features.by_head else None,
            "knn_accuracy": features.by_neighbours.value,
            "neighbours": features.neighbours,
            "known": features.known,
            "agreement": features.agree,
            "map": [
                {"id": name, "class": self.classes[label], "x": round(x, 4), "y": round(y, 4)}
                for name, label, (x, y) in zip(
                    self.ids, features.labels.tolist(), features.points.tolist(), strict=True
                )
            ],
        }


@dataclass(frozen=True, slots=True)
class Heatmap:
    """The evidence for the predicted class of one picture.

    Attributes:
        image: path or id.
        predicted: name of the predicted class.
        probability: of the predicted class.
        true: name of the labelled class; None without a label.
        picture: (3, S, S) uint8, resized and cut to the input.
        heat: (S, S) float32, 0 to 1; all zero where there is no positive evidence.
    """

    image: str
    predicted: str
    probability: float
    true: str | None
    picture: Tensor
    heat: Tensor

    @property
    def caption(self) -> str:
        """Two or three lines for people."""
        share = f"{self.probability:.0%} {self.predicted}"
        lines = [Path(self.image).name, share] if self.true is None else [share, f"is {self.true}"]
        return "\n".join(lines if self.heat.any() else [*lines, "no positive evidence"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CamResult(_Result):
    """Heatmaps (Grad-CAM) of pictures.

    Attributes:
        images: number of images that were classified.
        heatmaps: one per picture; empty if a run made no mistakes.
        layer: name of the module whose output was weighted.
        grid: rows and columns of that output.
    """

    name: ClassVar[str] = "cam"
    images: int
    heatmaps: tuple[Heatmap, ...] = ()
    layer: str = ""
    grid: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, object]:
        """Return what ``tl inspect --cam --json`` and ``--worst --json`` print."""
        if not self.heatmaps:
            return {"model": self.model, "images": []}
        rows = [
            {
                "image": each.image,
                "predicted": each.predicted,
                "probability": each.probability,
                **({} if each.true is None else {"true": each.true}),
                "centre": _centre(each.heat),
            }
            for each in self.heatmaps
        ]
        return {"model": self.model, "layer": self.layer, "grid": list(self.grid), "images": rows}


InspectionResult = TreeResult | FreezePlanResult | ResidualsResult | DriftResult | FeaturesResult | CamResult


def _html(node: Node, *, is_open: bool = False) -> str:
    shape = " x ".join(map(str, node.output[1:])) if node.output else ""
    facts = [escape(node.type), shape, f"{node.parameters:,} parameters", f"{node.multiply_adds:,} MACs"]
    line = f"<b>{escape(node.name.rpartition('.')[2] or 'model')}</b> {', '.join(fact for fact in facts if fact)}"
    if not node.children:
        return f"<div style='margin-left:1.2em'>{line}</div>"
    children = "".join(map(_html, node.children))
    return f"<details style='margin-left:1.2em'{' open' * is_open}><summary>{line}</summary>{children}</details>"


def _rows(report: ResidualReport, before: ResidualReport | None) -> list[dict[str, object]]:
    rows = []
    for index, (residual, strength) in enumerate(zip(report.residuals, report.strengths, strict=True)):
        row = {"name": residual.name, **plain_data(residual), **plain_data(strength)}
        if any(report.effects):
            row["effects"] = [plain_data(effect) for effect in report.effects[index]]
        if before is not None:
            row["before"] = plain_data(before.strengths[index])
        rows.append(row)
    return rows


def _centre(heat: Tensor) -> list[float] | None:
    """Return the centre of the heat, from the left and from the top, as fractions of the side; None without heat."""
    total = heat.sum()
    if not total:
        return None
    positions = (torch.arange(len(heat)) + 0.5) / len(heat)
    return [round(((heat.sum(axis) * positions).sum() / total).item(), 4) for axis in (0, 1)]
