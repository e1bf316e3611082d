"""An exponential moving average of the weights: often better on validation than the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a model's parameters and floating-point buffers.

    After step n it is d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)): the rise of d lets a
    short run forget where it began (as TensorFlow's ExponentialMovingAverage with ``num_updates``).

    Attributes:
        decay: d in the long run.
        updates: steps that have gone in.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = model
        self._values = {name: value.detach().clone() for name, value in _averaged(model).items()}
        self._moving: list[tuple[Tensor, Tensor]] = []
        self.follow()

    def follow(self) -> None:
        """Note what may change from now on; what is frozen equals its average and stays out of it."""
        self._moving = [
            (self._values[name], value.detach())
            for name, value in _averaged(self._model).items()
            if _may_change(self._model, name, value)
        ]

    def update(self) -> None:
        """Take the weights after one optimizer step into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._moving:
            averages, current = zip(*self._moving, strict=True)
            torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lend the model the averaged weights; its own come back, bit by bit."""
        current = _averaged(self._model)
        own = {name: value.detach().clone() for name, value in current.items()}
        with torch.no_grad():
            for name, value in current.items():
                value.copy_(self._values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in current.items():
                    value.copy_(own[name])

    def state_dict(self) -> dict[str, object]:
        """Return plain types and tensors."""
        return {"updates": self.updates, "values": self._values}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            KeyError: it is of another model.
        """
        values, updates = state["values"], state["updates"]
        assert isinstance(values, dict)
        assert isinstance(updates, int)
        for name, value in self._values.items():
            value.copy_(values[name])
        self.updates = updates


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value for name, value in named.items() if value.is_floating_point()}


def _may_change(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether a step can change it: a parameter that trains, or a statistic of a module in training mode."""
    if isinstance(value, nn.Parameter):
        return value.requires_grad
    return model.get_submodule(name.rpartition(".")[0]).training
