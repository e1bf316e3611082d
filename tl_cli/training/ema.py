"""Exponential moving average (EMA) of the weights, often better on validation than the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a model's parameters and floating-point buffers.

    After step n it is d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)): with a d that rises, a
    short run forgets its initial weights (as TensorFlow's ExponentialMovingAverage with ``num_updates``).

    Attributes:
        decay: the limit of d.
        updates: steps averaged so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._model = model
        self._values = {name: value.detach().clone() for name, value in _averaged(model).items()}
        self._moving: list[tuple[Tensor, Tensor]] = []
        self.follow()

    def follow(self) -> None:
        """Find the tensors that may change from now on; frozen ones equal their average and need no update."""
        self._moving = [
            (self._values[name], value.detach())
            for name, value in _averaged(self._model).items()
            if _may_change(self._model, name, value)
        ]

    def restart(self) -> None:
        """Begin again with the weights as they are."""
        self.updates = 0
        for name, value in _averaged(self._model).items():
            self._values[name].copy_(value.detach())

    def update(self) -> None:
        """Update the average with the weights after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._moving:
            averages, current = zip(*self._moving, strict=True)
            torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights while the block lasts; its own are restored bit for bit."""
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
        """Load the result of ``state_dict``.

        Raises:
            KeyError: it belongs to another model.
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
    """Whether a step can change a tensor: a trainable parameter, or a buffer of a module in training mode."""
    if isinstance(value, nn.Parameter):
        return value.requires_grad
    return model.get_submodule(name.rpartition(".")[0]).training
