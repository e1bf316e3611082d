"""Residual connections on real images: how strong a branch is relative to its shortcut, and the model without it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor, nn

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.logits import Counted, check_finite
from tl_cli.evaluation.paired import LEVEL, holm, mcnemar
from tl_cli.evaluation.task import SINGLE_LABEL, Task
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.trace import Additions


@dataclass(frozen=True, slots=True)
class Strength:
    """How a residual's two parts compare, as means over images.

    ``x`` is the output of the shortcut and ``F`` that of the branch, each flattened to one vector per image.

    Attributes:
        x_norm: norm of x.
        branch_norm: norm of F.
        ratio: norm of F divided by the norm of x, per image.
        cosine: of the angle between x and F: 1 where F points in x's direction, 0 where it is orthogonal, negative
            where it reduces x; None where one of them is zero.
        share: F's share of the energy of the sum s = x + F, <F, s> / <s, s>; x has the rest. Below zero the branch
            reduces x, above one it replaces it.
    """

    x_norm: float
    branch_norm: float
    ratio: float
    cosine: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Effect:
    """How predictions change when a residual's branch is scaled.

    Attributes:
        scale: factor of F; 0 removes it.
        kept: share of the images whose predicted class stays the same.
        divergence: Kullback-Leibler, from the original probabilities to the changed ones, in nats, mean over images.
        accuracy: with the scaled branch; None where the labels are unknown.
        loss: cross-entropy with the scaled branch; None where the labels are unknown.
        p_value: of the difference in accuracy: McNemar's exact test on these images, Holm-corrected over the
            residuals; None where the labels are unknown.
    """

    scale: float
    kept: float
    divergence: float
    accuracy: float | None = None
    loss: float | None = None
    p_value: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the difference in accuracy is significant at 5%."""
        return self.p_value is not None and self.p_value < LEVEL


@dataclass(frozen=True, slots=True)
class ResidualReport:
    """The residuals of a model, measured on images.

    Attributes:
        residuals: in order of execution.
        strengths: one per residual.
        effects: per residual, one per scale; empty where no scales were measured.
        accuracy: of the unchanged model; None where the labels are unknown.
        loss: cross-entropy of the unchanged model; None where the labels are unknown.
        images: number of images.
    """

    residuals: tuple[Residual, ...]
    strengths: tuple[Strength, ...]
    effects: tuple[tuple[Effect, ...], ...]
    accuracy: float | None
    loss: float | None
    images: int


def measure_residuals(
    model: nn.Module,
    residuals: Sequence[Residual],
    batches: Iterable[Batch],
    *,
    scales: Sequence[float] = (),
    task: Task = SINGLE_LABEL,
    counted: Counted = lambda done: None,
) -> ResidualReport:
    """Return how strong the branches are, and how predictions change without each. The model is left in eval mode.

    Args:
        batches: inputs on the model's device; a label below zero is unknown.
        scales: factors of each branch, one residual at a time: one forward pass per residual and scale.
        task: of the model, for its decisions and its loss.
        counted: called with the number of forward passes done.

    Raises:
        UsageError: the forward pass on these images differs from the one in which the residuals were found.
        WeightsError: the model returns NaN or infinity.
    """
    model.eval()
    products: dict[int, list[Tensor]] = {each.addition: [] for each in residuals}
    logits: dict[tuple[int, float] | None, list[Tensor]] = {None: []}
    labels, done = [], 0
    with torch.no_grad():
        for batch in batches:
            with _Parts(residuals, partial(_record_products, products, len(batch.labels))):
                logits[None].append(model(batch.inputs).float().cpu())
            check_finite(logits[None][-1])
            labels.append(batch.labels.cpu())
            counted(done := done + 1)
            for residual, scale in product(residuals, scales):
                with _Parts([residual], partial(_scaled, scale)):
                    scaled = model(batch.inputs).float().cpu()
                logits.setdefault((residual.addition, scale), []).append(scaled)
                counted(done := done + 1)
    original, known = torch.cat(logits[None]), torch.cat(labels)
    accuracy, loss = _accuracy_and_loss(task, original, known)
    by_scale = [
        _effects(task, scale, original, [torch.cat(logits[each.addition, scale]) for each in residuals], known)
        for scale in scales
    ]
    return ResidualReport(
        tuple(residuals),
        tuple(_strength(products[each.addition], each) for each in residuals),
        tuple(zip(*by_scale, strict=True)) if by_scale else tuple(() for _ in residuals),
        accuracy,
        loss,
        len(known),
    )


@dataclass(frozen=True, slots=True)
class Operands:
    """The two operands of a residual and their sum; tensors with a row per image.

    Attributes:
        x: output of the shortcut.
        branch: output F(x) of the branch, of x's shape.
        sum: x + F(x), before any further operation.
    """

    x: Tensor
    branch: Tensor
    sum: Tensor


def operands(model: nn.Module, residuals: Sequence[Residual], images: Tensor) -> list[Operands]:
    """Return the operands of each residual in a forward pass. The model is left in eval mode.

    Args:
        images: (B, 3, H, W), normalised, on the model's device.

    Raises:
        UsageError: the forward pass on these images differs from the one in which the residuals were found.
    """
    recorded: dict[int, Operands] = {}

    def record(residual: Residual, x: Tensor, branch: Tensor) -> None:
        # Copies, because later layers may write into their input.
        recorded[residual.addition] = Operands(x.clone(), branch.clone(), x + branch)

    model.eval()
    with torch.no_grad(), _Parts(residuals, record):
        model(images)
    for residual in residuals:
        if residual.addition not in recorded:
            raise _not_found(residual)
    return [recorded[each.addition] for each in residuals]


class _Parts(Additions):
    """Calls a function with each residual, its x and its F while a network runs; a result replaces their sum."""

    def __init__(
        self, residuals: Sequence[Residual], visit: Callable[[Residual, Tensor, Tensor], Tensor | None]
    ) -> None:
        super().__init__()
        self._by_addition = {each.addition: each for each in residuals}
        self._visit = visit

    def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        residual = self._by_addition.get(index)
        return None if residual is None else self._visit(residual, *_parts(residual, one, other, alpha))


def _record_products(
    products: Mapping[int, list[Tensor]], images: int, residual: Residual, x: Tensor, branch: Tensor
) -> None:
    """Append <x, x>, <F, F> and <x, F> of each image, (images, 3) float64 on the CPU."""
    x, f = (
        part.reshape(images, -1).float() if part.numel() % images == 0 else part.reshape(1, -1) for part in (x, branch)
    )
    pairs = [torch.linalg.vecdot(*pair).double().cpu() for pair in ((x, x), (f, f), (x, f))]
    products[residual.addition].append(torch.stack(pairs, 1))


def _scaled(scale: float, residual: Residual, x: Tensor, branch: Tensor) -> Tensor:
    return x + scale * branch


def _parts(residual: Residual, one: Tensor, other: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return (x, F), both of the sum's shape."""
    scaled = other if alpha == 1 else other * alpha
    x, branch = torch.broadcast_tensors(*((one, scaled) if residual.x_first else (scaled, one)))
    if x.shape[1:] != torch.Size(residual.shape[1:]):
        raise _not_found(residual)
    return x, branch


def _not_found(residual: Residual) -> UsageError:
    return UsageError(f"{residual.name}: the forward pass differs between images, so the block cannot be measured")


def _strength(products: Sequence[Tensor], residual: Residual) -> Strength:
    if not products:
        raise _not_found(residual)
    xx, ff, xf = torch.cat(list(products)).unbind(1)
    x_norm, branch_norm, tiny = xx.sqrt(), ff.sqrt(), torch.finfo(torch.float32).tiny
    both = (xx > 0) & (ff > 0)
    cosines = (xf / (x_norm * branch_norm).clamp(min=tiny))[both].clamp(-1, 1)
    return Strength(
        x_norm=x_norm.mean().item(),
        branch_norm=branch_norm.mean().item(),
        ratio=(branch_norm / x_norm.clamp(min=tiny)).mean().item(),
        cosine=cosines.mean().item() if len(cosines) else None,
        share=((ff + xf) / (xx + ff + 2 * xf).clamp(min=tiny)).mean().item(),
    )


def _effects(task: Task, scale: float, before: Tensor, after: Sequence[Tensor], labels: Tensor) -> list[Effect]:
    """Return how predictions change with each branch scaled."""
    effects, decisions, correct = [], task.decide(before), task.is_correct(before, labels).numpy()
    for logits in after:
        divergence = task.divergence(before, logits).item()
        kept = task.is_correct(logits, decisions).double().mean().item()
        accuracy, loss = _accuracy_and_loss(task, logits, labels)
        p_value = None if accuracy is None else mcnemar(correct, task.is_correct(logits, labels).numpy()).p_value
        effects.append(Effect(scale, kept, divergence, accuracy, loss, p_value))
    known = [each.p_value for each in effects if each.p_value is not None]
    return (
        [replace(each, p_value=value) for each, value in zip(effects, holm(known), strict=True)] if known else effects
    )


def _accuracy_and_loss(task: Task, logits: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    if bool((labels < 0).any()):
        return None, None
    return task.is_correct(logits, labels).double().mean().item(), task.loss(logits, labels).item()


def explain(report: ResidualReport) -> list[str]:
    """Return what the measurements of a model's residuals mean, in sentences."""
    lines = [
        "Each block adds its branch F to its input: x + F(x). F only has to learn the difference (the residual), and x "
        "still passes through the shortcut if F contributes nothing."
    ]
    if any(each.shortcut != "identity" for each in report.residuals):
        lines.append(
            "Where the shape changes, the shortcut pools or projects x (marked in the table), so there x is its output."
        )
    ratios = [each.ratio for each in report.strengths]
    strongest, weakest = ratios.index(max(ratios)), ratios.index(min(ratios))
    names = [each.name for each in report.residuals]
    lines.append(
        f"The median |F| / |x| is {median(ratios):.2f}: largest in {names[strongest]} ({ratios[strongest]:.2f}), "
        f"smallest in {names[weakest]} ({ratios[weakest]:.2f})."
    )
    cosines = [each.cosine for each in report.strengths if each.cosine is not None]
    if cosines:
        near = sum(abs(cosine) < 0.25 for cosine in cosines)
        lines.append(
            f"In {near} of {len(cosines)} blocks F is nearly orthogonal to x (cosine within 0.25): it adds new "
            "features. Where the cosine is negative, F reduces x."
        )
    if any(report.effects):
        lines.append(f"Without F, one block at a time: {_effect_of_removal(report)}")
    return lines


def _effect_of_removal(report: ResidualReport) -> str:
    """Return on which branches predictions depend most, as the rest of a sentence."""
    first = [effects[0] for effects in report.effects]
    names = [each.name for each in report.residuals]
    if report.accuracy is not None:
        significant = [index for index, each in enumerate(first) if each.is_significant]
        if not significant:
            return (
                f"no significant change in accuracy on these {report.images:,} images. Removing one block changes "
                "little, because x still passes through the shortcut."
            )
        lost = [100 * (report.accuracy - (each.accuracy or 0.0)) for each in first]
        most = max(significant, key=lost.__getitem__)
        rest = len(first) - len(significant)
        others = f"; {rest} of {len(first)} blocks make no significant difference" if rest else ""
        return f"{names[most]} costs most, {lost[most]:.1f} points of accuracy{others}."
    changed = [each.divergence for each in first]
    most, least = changed.index(max(changed)), changed.index(min(changed))
    return (
        f"{names[most]} changes the probabilities most ({first[most].kept:.0%} of the predictions stay), "
        f"{names[least]} least ({first[least].kept:.0%} stay)."
    )
