"""What a library of architectures must tell the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from tl_cli.contract import Preprocessing
from tl_cli.io.download import Missing, Progress
from tl_cli.models.zoo.weights import Pretrained


@dataclass(frozen=True, slots=True)
class Published:
    """What a library says of an architecture's best weights without building anything.

    Attributes:
        plain_name: the name without a library's prefix or a weights tag.
        module: last part of the Python module that defines it: its family.
        input_size: side of the input in pixels.
        top1: ImageNet-1k accuracy, a fraction; None where the library does not say.
        on_disk: whether the weights are here; None where there are none.
    """

    plain_name: str
    module: str
    input_size: int
    top1: float | None
    on_disk: bool | None


class Source(Protocol):
    """A library of architectures."""

    def names(self) -> list[str]:
        """Return the names of its architectures."""

    def has(self, name: str) -> bool:
        """Whether it has this architecture. Imports a library only for a name that can be its own."""

    def architecture(self, name: str) -> str:
        """Return the name without a tag of weights: what a saved model is built from."""

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        """Return the architecture with random weights and without auxiliary heads.

        Args:
            options: arguments that depend on the weights or the input size.
            drop_path: largest rate of stochastic depth; None is the architecture's own.

        Raises:
            UsageError: it has no stochastic depth and a rate is asked for.
        """

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return published weights: those called ``spec``, or the best for ``spec == "default"``."""

    def missing(self, name: str, spec: str) -> Missing | None:
        """Return what ``pretrained`` would have to fetch; None where it is here, or comes with a package."""

    def adapt(self, name: str, model: nn.Module, found: Pretrained, options: dict[str, int]) -> Mapping[str, Tensor]:
        """Return the weights under the names and, but for the head, in the shapes of ``model``.

        Args:
            model: what ``build`` gave for ``options``.
        """

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        """Return what published weights expect: those called ``spec``, or the best for ``spec == "default"``."""

    def published(self, name: str) -> list[str]:
        """Return the names of an architecture's published weights."""

    def about(self, name: str) -> Published:
        """Return what is known without building it."""

    def fetch(self, name: str, progress: Progress) -> None:
        """Bring the published weights to this machine."""

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        """Return (the smallest input side, the side of the published weights called ``spec``), in pixels."""

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return what the architecture must be built with for inputs of that side."""
