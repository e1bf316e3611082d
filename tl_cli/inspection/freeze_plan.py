"""Which parts of a model train in each phase, read off the model while it is frozen as in a run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from tl_cli.models.classifier import Classifier
from tl_cli.models.freezing import batch_norms, restored


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model, head or backbone.

    Attributes:
        name: qualified name of the module.
        is_head: whether it produces the classes.
        parameters: number of parameters.
        trainable: parameters that train, per phase.
        batch_norms: layers with running statistics.
        updating: layers whose running statistics change, per phase.
    """

    name: str
    is_head: bool
    parameters: int
    trainable: tuple[int, ...]
    batch_norms: int
    updating: tuple[int, ...]


def freeze_plan(classifier: Classifier, phases: Sequence[Callable[[], None]]) -> list[Part]:
    """Return the parts of a model with what trains in each phase. The model is left unchanged.

    Each phase is applied and read off, so that the plan shows what training does; then everything is restored. A copy
    would not do: the phases freeze the modules of this model, by identity.

    Args:
        phases: each freezes the model as one phase of a run does.
    """
    by_phase = []
    with restored(classifier.model):
        for freeze in phases:
            freeze()
            by_phase.append(_states(classifier))
    return [
        Part(
            name,
            name in classifier.head,
            parameters=state.parameters,
            trainable=tuple(states[name].trainable for states in by_phase),
            batch_norms=state.batch_norms,
            updating=tuple(states[name].updating for states in by_phase),
        )
        for name, state in by_phase[0].items()
    ]


@dataclass(frozen=True, slots=True)
class ByName:
    """The effect of freezing every parameter without some letters in its name, a common way to write it.

    Attributes:
        letters: a parameter trains if its name contains them.
        frozen: number of parameters that would be frozen.
        trainable: number of parameters that would train.
        head_frozen: modules of the head that would be frozen by mistake.
        body_trained: modules outside the head that would train by mistake.
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
        """Whether it would train exactly the head, as in ResNet."""
        return not self.head_frozen and not self.body_trained


def freeze_by_name(classifier: Classifier, letters: str = "fc") -> ByName:
    """Return what ``if 'fc' not in name: parameter.requires_grad = False`` would do. The model is left unchanged."""
    named = list(classifier.model.named_parameters())
    trained = [(name, p) for name, p in named if letters in name]
    owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in trained)
    body = [
        name for name in owners
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


@dataclass(frozen=True, slots=True)
class _State:
    """A part in one phase: number of parameters, of those that train, of BatchNorm layers and of those that update."""

    parameters: int
    trainable: int
    batch_norms: int
    updating: int


def _states(classifier: Classifier) -> dict[str, _State]:
    """Return the state of each part in training mode, by name."""
    classifier.model.train()
    head = set(classifier.head)
    states: dict[str, _State] = {}
    if any(True for _ in classifier.model.parameters(recurse=False)):
        states["(tokens and embeddings)"] = _state([classifier.model])
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


def _state(modules: list[nn.Module]) -> _State:
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    norms = batch_norms(modules)
    return _State(
        _count(parameters),
        _count(p for p in parameters if p.requires_grad),
        len(norms),
        sum(norm.training for norm in norms),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
