"""What trains and what does not, part by part, read off the model after freezing it as a run would."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from tl_cli.models.freezing import batch_norms
from tl_cli.models.zoo.registry import Classifier


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model, head or backbone.

    Attributes:
        name: qualified name of the module.
        is_head: whether it produces the classes.
        parameters: in all.
        trainable: that train, in each phase.
        batch_norms: layers with running statistics.
        updating: of those, whose statistics change, in each phase.
    """

    name: str
    is_head: bool
    parameters: int
    trainable: tuple[int, ...]
    batch_norms: int
    updating: tuple[int, ...]


def freeze_plan(classifier: Classifier, phases: Sequence[Callable[[], None]]) -> list[Part]:
    """Return the parts of a model with what each phase does to them. The model is left in the last one, in eval mode.

    Args:
        phases: each freezes the model as one phase of a run would.
    """
    seen = []
    for freeze in phases:
        freeze()
        seen.append(_states(classifier))
    classifier.model.eval()
    return [
        Part(
            name,
            name in classifier.head,
            parameters=state[0],
            trainable=tuple(states[name][1] for states in seen),
            batch_norms=state[2],
            updating=tuple(states[name][3] for states in seen),
        )
        for name, state in seen[0].items()
    ]


@dataclass(frozen=True, slots=True)
class ByName:
    """What freezing every parameter without some letters in its name would do, which is how it is often written.

    Attributes:
        letters: that a name must hold for its parameter to train.
        frozen: parameters that would be frozen.
        trainable: parameters that would train.
        head_frozen: modules of the head that would be frozen all the same.
        body_trained: how many modules outside of the head would train.
        example: one of them; "" where there is none.
    """

    letters: str
    frozen: int
    trainable: int
    head_frozen: tuple[str, ...]
    body_trained: int
    example: str

    @property
    def is_right(self) -> bool:
        """Whether it would freeze what should be frozen and nothing else, as in ResNet."""
        return not self.head_frozen and not self.body_trained


def freeze_by_name(classifier: Classifier, letters: str = "fc") -> ByName:
    """Return what ``if 'fc' not in name: parameter.requires_grad = False`` would do to a model."""
    named = list(classifier.model.named_parameters())
    trained = [(name, p) for name, p in named if letters in name]
    owners = {name.rpartition(".")[0] for name, _ in trained}
    body = [
        name for name in dict.fromkeys(name.rpartition(".")[0] for name, _ in trained)
        if not any(name == part or name.startswith(f"{part}.") for part in classifier.head)
    ]  # fmt: skip
    return ByName(
        letters,
        frozen=_count(p for name, p in named if letters not in name),
        trainable=_count(p for _, p in trained),
        head_frozen=tuple(part for part in classifier.head if part not in owners),
        body_trained=len(body),
        example=body[0] if body else "",
    )


def _states(classifier: Classifier) -> dict[str, tuple[int, int, int, int]]:
    """Return (parameters, trainable, BatchNorm layers, those that update) by part, in training mode."""
    classifier.model.train()
    head = set(classifier.head)
    states: dict[str, tuple[int, int, int, int]] = {}
    loose = [p for _, p in classifier.model.named_parameters(recurse=False)]
    if loose:
        states["(tokens and embeddings)"] = (_count(loose), _count(p for p in loose if p.requires_grad), 0, 0)
    for name, child in classifier.model.named_children():
        inside = [part for part in head if part == name or part.startswith(name + ".")]
        head_modules = [classifier.model.get_submodule(part) for part in inside]
        in_head = {m for module in head_modules for m in module.modules()}
        body = [m for m in child.modules() if m not in in_head]
        if any(list(m.parameters(recurse=False)) for m in body):
            states[name] = _state(body)
        for part, module in zip(inside, head_modules, strict=True):
            states[part] = _state(list(module.modules()))
    return states


def _state(modules: list[nn.Module]) -> tuple[int, int, int, int]:
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    norms = batch_norms(modules)
    return (
        _count(parameters),
        _count(p for p in parameters if p.requires_grad),
        len(norms),
        sum(norm.training for norm in norms),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
