"""Residual connections on real images: how strong a branch is beside its shortcut, and what a network is without it."""

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

_CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Strength:
    """How a residual's two parts compare, as means over images.

    ``x`` is what the shortcut brings to the addition and ``F`` what the branch brings, each with all its numbers as one
    vector an image.

    Attributes:
        x_norm: length of x.
        branch_norm: length of F.
        ratio: length of F in lengths of x, image by image.
        cosine: of the angle between x and F: 1 where the branch goes on in x's direction, 0 where it brings something
            new, negative where it takes away; None where one of them is zero.
        share: of the energy of the sum s = x + F that the branch brings, <F, s> / <s, s>: x's share makes it one, below
            zero the branch weakens what is there, above one it replaces it.
    """

    x_norm: float
    branch_norm: float
    ratio: float
    cosine: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of the answers when a residual's branch is scaled.

    Attributes:
        scale: of F; 0 leaves it out.
        kept: share of the images whose answer stays the same.
        divergence: Kullback-Leibler, from the probabilities as they were to those now, in nats, mean over images.
        accuracy: now; None where the truth is not known.
        loss: cross-entropy now; None where the truth is not known.
        p_value: that accuracy differs so much by chance: McNemar's exact test on these images, by Holm for so many
            residuals; None where the truth is not known.
    """

    scale: float
    kept: float
    divergence: float
    accuracy: float | None = None
    loss: float | None = None
    p_value: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether the difference in accuracy can be told from chance, at 5%."""
        return self.p_value is not None and self.p_value < _CHANCE


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The residuals of a network on real images.

    Attributes:
        residuals: in order of execution.
        strengths: one each.
        effects: of each, one a scale; none where they were not asked for.
        accuracy: of the network as it is; None where the truth is not known.
        loss: the same.
        images: how many were looked at.
    """

    residuals: tuple[Residual, ...]
    strengths: tuple[Strength, ...]
    effects: tuple[tuple[Effect, ...], ...]
    accuracy: float | None
    loss: float | None
    images: int


def dissect(
    model: nn.Module,
    residuals: Sequence[Residual],
    batches: Iterable[Batch],
    *,
    scales: Sequence[float] = (),
    counted: Counted = lambda done: None,
) -> Anatomy:
    """Return how strong the branches are on real images, and what the network is without each. It is left in eval mode.

    Args:
        batches: inputs on the model's device; a label below zero is unknown.
        scales: by which each branch is multiplied, one residual at a time: a forward pass for every residual and scale.
        counted: told how many forward passes are done.

    Raises:
        UsageError: the network does not compute these images as it did the ones in which the residuals were found.
        WeightsError: it answers with what is no number.
    """
    model.eval()
    places = {each.addition: each for each in residuals}
    seen: dict[int, list[Tensor]] = {each.addition: [] for each in residuals}
    answers: dict[tuple[int, float] | None, list[Tensor]] = {None: []}
    labels, done = [], 0
    with torch.no_grad():
        for batch in batches:
            with _Weighing(places, len(batch.labels), seen):
                answers[None].append(model(batch.inputs).float().cpu())
            check_finite(answers[None][-1])
            labels.append(batch.labels.cpu())
            counted(done := done + 1)
            for place, residual in places.items():
                for scale in scales:
                    with _Scaling(residual, scale):
                        logits = model(batch.inputs).float().cpu()
                    answers.setdefault((place, scale), []).append(logits)
                    counted(done := done + 1)
    whole, truth = torch.cat(answers[None]), torch.cat(labels)
    accuracy, loss = _judged(whole, truth)
    by_scale = [
        _effects(scale, whole, [torch.cat(answers[each.addition, scale]) for each in residuals], truth)
        for scale in scales
    ]
    return Anatomy(
        tuple(residuals),
        tuple(_strength(seen[each.addition], each) for each in residuals),
        tuple(zip(*by_scale, strict=True)) if by_scale else tuple(() for _ in residuals),
        accuracy,
        loss,
        len(truth),
    )


@dataclass(frozen=True, slots=True)
class Operands:
    """The two parts of a residual and their sum, as they were computed; tensors with a row for each image.

    Attributes:
        x: what the shortcut brings.
        branch: what F brings, of x's shape.
        sum: of both, before anything else happens to it.
    """

    x: Tensor
    branch: Tensor
    sum: Tensor


def operands(model: nn.Module, residuals: Sequence[Residual], images: Tensor) -> list[Operands]:
    """Return what each residual adds up in a forward pass. The model is left in eval mode.

    Args:
        images: (B, 3, H, W), normalised, on the model's device.

    Raises:
        UsageError: the network does not compute these images as it did the ones in which the residuals were found.
    """
    model.eval()
    with torch.no_grad(), _Keeping(residuals) as keeping:
        model(images)
    kept: dict[int, Operands] = keeping.kept
    for residual in residuals:
        if residual.addition not in kept:
            raise _lost(residual)
    return [kept[each.addition] for each in residuals]


class _Keeping(Additions):
    def __init__(self, residuals: Sequence[Residual]) -> None:
        super().__init__()
        self._places = {each.addition: each for each in residuals}
        self.kept: dict[int, Operands] = {}

    def added(self, place: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        residual = self._places.get(place)
        if residual is not None:
            x, branch = _parts(residual, one, other, alpha)
            # Copies: what follows may write into them.
            self.kept[place] = Operands(x.clone(), branch.clone(), x + branch)
        return None


class _Weighing(Additions):
    """Notes for each image the lengths of x, F and their sum, and the products <x, F> and <F, x + F>."""

    def __init__(self, places: Mapping[int, Residual], images: int, seen: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self._places, self._images, self._seen = places, images, seen

    def added(self, place: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        residual = self._places.get(place)
        if residual is not None:
            x, branch = (
                part.reshape(self._images, -1).float() if part.numel() % self._images == 0 else part.reshape(1, -1)
                for part in _parts(residual, one, other, alpha)
            )
            xx, ff, xf = (torch.linalg.vecdot(a, b).double().cpu() for a, b in ((x, x), (branch, branch), (x, branch)))
            self._seen[place].append(torch.stack([xx, ff, xf], 1))
        return None


class _Scaling(Additions):
    def __init__(self, residual: Residual, scale: float) -> None:
        super().__init__()
        self._residual, self._scale = residual, scale

    def added(self, place: int, one: Tensor, other: Tensor, alpha: float) -> Tensor | None:
        if place != self._residual.addition:
            return None
        x, branch = _parts(self._residual, one, other, alpha)
        return x + self._scale * branch


def _parts(residual: Residual, one: Tensor, other: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return (x, F), both of the sum's shape."""
    scaled = other if alpha == 1 else other * alpha
    x, branch = torch.broadcast_tensors(*((one, scaled) if residual.x_first else (scaled, one)))
    if x.shape[1:] != torch.Size(residual.shape[1:]):
        raise _lost(residual)
    return x, branch


def _lost(residual: Residual) -> UsageError:
    return UsageError(f"{residual.name}: the network computes these images in another way than the first ones")


def _strength(seen: Sequence[Tensor], residual: Residual) -> Strength:
    if not seen:
        raise _lost(residual)
    xx, ff, xf = torch.cat(list(seen)).unbind(1)
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
    """Return what each residual's branch, scaled, makes of the answers."""
    effects, was_right = [], (before.argmax(1) == labels).numpy()
    for logits in after:
        divergence = kl_div(logits.log_softmax(1), before.log_softmax(1), reduction="batchmean", log_target=True)
        kept = (before.argmax(1) == logits.argmax(1)).double().mean().item()
        accuracy, loss = _judged(logits, labels)
        chance = mcnemar(was_right, (logits.argmax(1) == labels).numpy()).p_value if accuracy is not None else None
        effects.append(Effect(scale, kept, divergence.item(), accuracy, loss, chance))
    known = [each.p_value for each in effects if each.p_value is not None]
    if not known:
        return effects
    return [replace(each, p_value=value) for each, value in zip(effects, holm(known), strict=True)]


def _judged(logits: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    if bool((labels < 0).any()):
        return None, None
    return (logits.argmax(1) == labels).double().mean().item(), cross_entropy(logits, labels).item()


def explain(anatomy: Anatomy) -> list[str]:
    """Return, in plain words, what the numbers of a network's residuals say."""
    kinds = {each.shortcut for each in anatomy.residuals}
    lines = [
        "Each block adds what its branch F computes to what came in: x + F(x). The branch only has to learn the "
        "difference, and x passes even where F is useless; that is the residual."
    ]
    if kinds - {"identity"}:
        lines.append(
            "Where shape or channels change, x itself is pooled or projected to fit (marked in the table), so there "
            "x is what the shortcut makes of it."
        )
    ratios = [each.ratio for each in anatomy.strengths]
    strongest, weakest = (pick(range(len(ratios)), key=ratios.__getitem__) for pick in (max, min))
    middle = median(ratios)
    names = [each.name for each in anatomy.residuals]
    lines.append(
        f"The median F is {middle:.2f} times as long as its x: longest in {names[strongest]}, "
        f"{ratios[strongest]:.2f}, shortest in {names[weakest]}, {ratios[weakest]:.2f}."
    )
    cosines = [each.cosine for each in anatomy.strengths if each.cosine is not None]
    if cosines:
        near = sum(abs(cosine) < 0.25 for cosine in cosines)
        lines.append(
            f"In {near} of {len(cosines)} blocks F stands nearly at right angles to x (cosine within 0.25): it brings "
            "what x does not hold yet. Where the cosine is negative it takes away from x."
        )
    if any(anatomy.effects):
        lines.append(_without(anatomy))
    return lines


def _without(anatomy: Anatomy) -> str:
    """Say which branches the answers hang on."""
    first = [effects[0] for effects in anatomy.effects]
    names = [each.name for each in anatomy.residuals]
    if anatomy.accuracy is not None:
        told = [place for place, each in enumerate(first) if each.is_told]
        if not told:
            return (
                f"Without F, one block at a time, accuracy on these {anatomy.images:,} images changes no more than by "
                "chance: no single branch is missed. Where a chain would break, a network of residuals bends."
            )
        lost = [100 * (anatomy.accuracy - (each.accuracy or 0.0)) for each in first]
        most = max(told, key=lost.__getitem__)
        rest = len(first) - len(told)
        others = (
            f"; {rest} of {len(first)} could go without a difference that could be told from chance" if rest else ""
        )
        return f"Without F, one block at a time: {names[most]} costs most, {lost[most]:.1f} points of accuracy{others}."
    changed = [each.divergence for each in first]
    most, least = (pick(range(len(changed)), key=changed.__getitem__) for pick in (max, min))
    return (
        f"Without F, one block at a time: {names[most]} changes the probabilities most ({first[most].kept:.0%} of the "
        f"answers stay), {names[least]} least ({first[least].kept:.0%} stay)."
    )
