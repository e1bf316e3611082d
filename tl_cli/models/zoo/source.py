"""The interface to a library of architectures."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from tl_cli.contract import Preprocessing
from tl_cli.io.download import Missing, Progress
from tl_cli.models.list.published import Architecture
from tl_cli.models.zoo.weights import Pretrained


class Source(Protocol):
    """A library of architectures. Methods with a body are right for most libraries."""

    def names(self) -> list[str]:
        """Return the names of its architectures."""

    def has(self, name: str) -> bool:
        """Whether it has this architecture. The library is imported only for names that may be its own."""
        return name in self.names()

    def architecture(self, name: str) -> str:
        """Return the name without a weights tag, from which a saved model is built."""
        return name

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        """Return the architecture with random weights and without auxiliary heads.

        Args:
            options: arguments that depend on the weights or the input size.
            drop_path: largest rate of stochastic depth; None is the architecture's own.

        Raises:
            UsageError: a drop-path rate is given, but it has no stochastic depth.
        """

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return published weights: those called ``spec``, or the best for ``spec == "default"``."""

    def missing(self, name: str, spec: str) -> Missing | None:
        """Return what ``pretrained`` would have to download; None where it is on this machine."""

    def adapt(self, name: str, model: nn.Module, weights: Pretrained, options: dict[str, int]) -> Mapping[str, Tensor]:
        """Return the weights with the names and, except for the head, the shapes of ``model``.

        Args:
            model: result of ``build`` with ``options``.
        """
        return weights.state

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        """Return the preprocessing of published weights: those called ``spec``, or the best for ``default``."""

    def published(self, name: str) -> list[str]:
        """Return the names of an architecture's published weights."""

    def about(self, name: str) -> Architecture:
        """Return the facts about an architecture."""

    def fetch(self, name: str, progress: Progress) -> None:
        """Download the best published weights."""
        self.pretrained(name, "default", progress)

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        """Return (the smallest input side, the side of the published weights called ``spec``), in pixels."""

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return the architecture's arguments that depend on the input size."""
        return {}
