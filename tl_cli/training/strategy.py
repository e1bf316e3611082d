"""Which layers train in which phase, at which learning rates. No images here."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tl_cli.errors import UsageError
from tl_cli.models import freezing
from tl_cli.models.classifier import Classifier
from tl_cli.models.layers import Layer, index_of, layers_of
from tl_cli.training.config import TrainConfig
from tl_cli.training.phases import Phase, first_trained, phases_of


@dataclass(frozen=True, slots=True)
class Strategy:
    """Which layers are frozen in which phase.

    Attributes:
        classifier: the model that is frozen and unfrozen.
        layers: layers of the model in order of execution, the head last.
        frozen_layers: number of layers that never train (``--freeze-until``).
        phases: in order.
    """

    classifier: Classifier
    layers: tuple[Layer, ...]
    frozen_layers: int
    phases: tuple[Phase, ...]

    def trained_layers(self, phase: Phase) -> tuple[Layer, ...]:
        """Return the layers that train in a phase, the head last."""
        return self.layers[first_trained(phase, len(self.layers), self.frozen_layers) :]

    def freeze_for(self, phase: Phase) -> None:
        """Freeze the layers that a phase freezes, and no others, in place.

        In the head phase the whole backbone is frozen. At unfreezing every layer trains, except those that stay frozen
        (``--freeze-until``) or wait for a later phase; BatchNorm statistics stay frozen unless ``--bn train``. Frozen
        modules stay in eval mode when ``train()`` is called, at the beginning of each epoch. The optimizer has all
        parameter groups from the start: the head keeps its moments, the backbone's begin here. The rates go from ``lr``
        to ``unfreeze_lr``, and the schedule begins again. A phase without a frozen prefix trains on images, not on
        cached features; the order of the images is a function of seed and epoch in both.
        """
        model = self.classifier.model
        if phase.name == "head":
            freezing.freeze_backbone(model, self.classifier.head_modules)
            return
        freezing.unfreeze(model, phase.bn)
        for layer in self.layers[: len(self.layers) - len(self.trained_layers(phase))]:
            freezing.freeze(layer.modules, layer.parameters)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Return the optimizer's groups: by learning rate and by weight decay; each parameter once.

        A group's ``share`` is its fraction of the backbone's learning rate: ``layer_decay`` to the power of the number
        of backbone layers above it (Howard & Ruder 2018; BEiT: 0.65 to 0.75 per block).
        """
        # As few groups as possible: on cached features the optimizer's overhead per group dominates a step.
        groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
        backbone = len(self.layers) - 1
        exempt = _exempt_from_decay(self.classifier.model)
        for index, layer in enumerate(self.layers):
            share = 1.0 if layer.is_head else config.layer_decay ** (backbone - 1 - index)
            for decays in (True, False):
                chosen = [p for p in layer.parameters if (config.decay_norms or _decays(p, exempt)) is decays]
                if chosen:
                    group = {
                        "params": [],
                        "lr": config.lr if layer.is_head else 0.0,
                        "weight_decay": config.weight_decay if decays else 0.0,
                        "is_head": layer.is_head,
                        "share": share,
                    }
                    groups.setdefault((layer.is_head, share, decays), group)["params"] += chosen
        return list(groups.values())


@dataclass(frozen=True, slots=True)
class Group:
    """One group of the optimizer's parameters.

    Attributes:
        is_head: whether it belongs to the head.
        parameters: number of parameters.
        tensors: number of parameter tensors.
        weight_decay: weight decay of the group.
        rates: peak learning rate in each phase; 0 if none of the parameters trains.
        trained: number of parameters that train in each phase.
    """

    is_head: bool
    parameters: int
    tensors: int
    weight_decay: float
    rates: tuple[float, ...]
    trained: tuple[int, ...]


def describe_groups(strategy: Strategy, config: TrainConfig) -> list[Group]:
    """Return the optimizer's groups with their learning rates and trained parameters in each phase.

    The model is left frozen as for the last phase.
    """
    groups = strategy.parameter_groups(config)
    trained = []
    for phase in strategy.phases:
        strategy.freeze_for(phase)
        trained.append([sum(p.numel() for p in group["params"] if p.requires_grad) for group in groups])
    return [
        Group(
            is_head=group["is_head"],
            parameters=sum(p.numel() for p in group["params"]),
            tensors=len(group["params"]),
            weight_decay=group["weight_decay"],
            rates=tuple(
                phase.peak_lr(group) if count else 0.0 for phase, count in zip(strategy.phases, counts, strict=True)
            ),
            trained=counts,
        )
        for group, counts in zip(groups, zip(*trained, strict=True), strict=True)
    ]


def plan_strategy(config: TrainConfig, classifier: Classifier, example: Tensor) -> Strategy:
    """Return the strategy of a config.

    Args:
        example: one image (1, 3, S, S) on the model's device, which may be meta.

    Raises:
        UsageError: no layer has the name of ``--freeze-until``, or there are fewer layers than stages.
    """
    layers = tuple(layers_of(classifier, example))
    frozen = index_of(layers, classifier, config.freeze_until) if config.freeze_until else 0
    unfreezable = len(layers) - 1 - frozen
    if config.unfreeze_stages > unfreezable:
        raise UsageError(f"--unfreeze-stages {config.unfreeze_stages}: there are only {unfreezable} layers to unfreeze")
    return Strategy(classifier, layers, frozen, phases_of(config))


def _decays(parameter: nn.Parameter, exempt: set[int]) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to norms, biases and channel scales (one axis)."""
    return sum(side > 1 for side in parameter.shape) > 1 and id(parameter) not in exempt


def _exempt_from_decay(model: nn.Module) -> set[int]:
    """Return the ids of tokens and position embeddings, to which weight decay does not apply either."""
    list_names = getattr(model, "no_weight_decay", None)  # timm's models have it
    named = list_names() if callable(list_names) else ()
    loose = [p for part in model.modules() for p in part.parameters(recurse=False) if p.dim() == 3 and p.shape[0] == 1]
    return {id(p) for name, p in model.named_parameters() if name in named} | {id(p) for p in loose}
