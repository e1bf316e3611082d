"""Residual connections on real images: how strong a branch is relative to its shortcut, and the model without it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.logits import Counted, check_finite
from tl_cli.evaluation.paired import holm, mcnemar
from tl_cli.inspection.residuals import Residual
from tl_cli.inspection.trace import Additions

_SIGNIFICANCE = 0.05


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
        return self.p_value is not None and self.p_value < _SIGNIFICANCE


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
    counted: Counted = lambda done: None,
) -> ResidualReport:
    """Return how strong the branches are, and how predictions change without each. The model is left in eval mode.

    Args:
        batches: inputs on the model's device; a label below zero is unknown.
        scales: factors of each branch, one residual at a time: one forward pass per residual and scale.
        counted: called with the number of forward passes done.

    Raises:
        UsageError: the forward pass on these images differs from the one in which the residuals were found.
        WeightsError: the model returns NaN or infinity.
    """
    model.eval()
    by_addition = {each.addition: each for each in residuals}
    products: dict[int, list[Tensor]] = {each.addition: [] for each in residuals}
    logits: dict[tuple[int, float] | None, list[Tensor]] = {None: []}
    labels, done = [], 0
    with torch.no_grad():
        for batch in batches:
            with _Products(by_addition, len(batch.labels), products):
                logits[None].append(model(batch.inputs).float().cpu())
            check_finite(logits[None][-1])
            labels.append(batch.labels.cpu())
            counted(done := done + 1)
            for index, residual in by_addition.items():
                for scale in scales:
                    with _Scaling(residual, scale):
                        scaled = model(batch.inputs).float().cpu()
                    logits.setdefault((index, scale), []).append(scaled)
                    counted(done := done + 1)
    original, known = torch.cat(logits[None]), torch.cat(labels)
    accuracy, loss = _accuracy_and_loss(original, known)
    by_scale = [
        _effects(scale, original, [torch.cat(logits[each.addition, scale]) for each in residuals], known)
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
    model.eval()
    with torch.no_grad(), _Operands(residuals) as recorder:
        model(images)
    kept: dict[int, Operands] = recorder.kept
    for residual in residuals:
        if residual.addition not in kept:
            raise _not_found(residual)
    return [kept[each.addition] for each in residuals]


class _Operands(Additions):
    def __init__(self, residuals: Sequence[Residual]) -> None:
        super().__init__()
        self._by_addition = {each.addition: each for each in residuals}
        self.kept: dict[int, Operands] = {}

    def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        residual = self._by_addition.get(index)
        if residual is not None:
            x, branch = _parts(residual, one, other, alpha)
            # Copies, because later layers may write into their input.
            self.kept[index] = Operands(x.clone(), branch.clone(), x + branch)
        return None


class _Products(Additions):
    """Records <x, x>, <F, F> and <x, F> of each image."""

    def __init__(self, residuals: Mapping[int, Residual], images: int, products: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self._by_addition, self._images, self._products = residuals, images, products

    def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        residual = self._by_addition.get(index)
        if residual is not None:
            x, branch = (
                part.reshape(self._images, -1).float() if part.numel() % self._images == 0 else part.reshape(1, -1)
                for part in _parts(residual, one, other, alpha)
            )
            xx, ff, xf = (torch.linalg.vecdot(a, b).double().cpu() for a, b in ((x, x), (branch, branch), (x, branch)))
            self._products[index].append(torch.stack([xx, ff, xf], 1))
        return None


class _Scaling(Additions):
    def __init__(self, residual: Residual, scale: float) -> None:
        super().__init__()
        self._residual, self._scale = residual, scale

    def added(self, index: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        if index != self._residual.addition:
            return None
        x, branch = _parts(self._residual, one, other, alpha)
        return x + self._scale * branch


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


def _effects(scale: float, before: Tensor, after: Sequence[Tensor], labels: Tensor) -> list[Effect]:
    """Return how predictions change with each branch scaled."""
    effects, correct = [], (before.argmax(1) == labels).numpy()
    for logits in after:
        divergence = kl_div(logits.log_softmax(1), before.log_softmax(1), reduction="batchmean", log_target=True)
        kept = (before.argmax(1) == logits.argmax(1)).double().mean().item()
        accuracy, loss = _accuracy_and_loss(logits, labels)
        p_value = mcnemar(correct, (logits.argmax(1) == labels).numpy()).p_value if accuracy is not None else None
        effects.append(Effect(scale, kept, divergence.item(), accuracy, loss, p_value))
    known = [each.p_value for each in effects if each.p_value is not None]
    if not known:
        return effects
    return [replace(each, p_value=value) for each, value in zip(effects, holm(known), strict=True)]


def _accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    if bool((labels < 0).any()):
        return None, None
    return (logits.argmax(1) == labels).double().mean().item(), cross_entropy(logits, labels).item()


def explain(report: ResidualReport) -> list[str]:
    """Return what the measurements of a model's residuals mean, in sentences."""
    kinds = {each.shortcut for each in report.residuals}
    lines = [
        "Each block adds its branch F to its input: x + F(x). F only has to learn the difference (the residual), and x "
        "still passes through the shortcut if F contributes nothing."
    ]
    if kinds - {"identity"}:
        lines.append(
            "Where the shape changes, the shortcut pools or projects x (marked in the table), so there x is its output."
        )
    ratios = [each.ratio for each in report.strengths]
    strongest, weakest = (pick(range(len(ratios)), key=ratios.__getitem__) for pick in (max, min))
    middle = median(ratios)
    names = [each.name for each in report.residuals]
    lines.append(
        f"The median |F| / |x| is {middle:.2f}: largest in {names[strongest]} ({ratios[strongest]:.2f}), smallest in "
        f"{names[weakest]} ({ratios[weakest]:.2f})."
    )
    cosines = [each.cosine for each in report.strengths if each.cosine is not None]
    if cosines:
        near = sum(abs(cosine) < 0.25 for cosine in cosines)
        lines.append(
            f"In {near} of {len(cosines)} blocks F is nearly orthogonal to x (cosine within 0.25): it adds new "
            "features. Where the cosine is negative, F reduces x."
        )
    if any(report.effects):
        lines.append(_without(report))
    return lines


def _without(report: ResidualReport) -> str:
    """Return a sentence on the branches that predictions depend on most."""
    first = [effects[0] for effects in report.effects]
    names = [each.name for each in report.residuals]
    if report.accuracy is not None:
        significant = [index for index, each in enumerate(first) if each.is_significant]
        if not significant:
            return (
                f"Without F, one block at a time: no significant change in accuracy on these {report.images:,} images. "
                "Removing one block changes little, because x still passes through the shortcut."
            )
        lost = [100 * (report.accuracy - (each.accuracy or 0.0)) for each in first]
        most = max(significant, key=lost.__getitem__)
        rest = len(first) - len(significant)
        others = f"; {rest} of {len(first)} blocks make no significant difference" if rest else ""
        return f"Without F, one block at a time: {names[most]} costs most, {lost[most]:.1f} points of accuracy{others}."
    changed = [each.divergence for each in first]
    most, least = (pick(range(len(changed)), key=changed.__getitem__) for pick in (max, min))
    return (
        f"Without F, one block at a time: {names[most]} changes the probabilities most ({first[most].kept:.0%} of the "
        f"predictions stay), {names[least]} least ({first[least].kept:.0%} stay)."
    )
