"""A network with what is needed to freeze, train and use it."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from tl_cli.choices import TtaName
from tl_cli.contract import Preprocessing, Stage, TaskName, WeightsTag
from tl_cli.models.head import HeadStart


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network, the modules that produce its classes, and the preprocessing that its weights expect.

    Attributes:
        name: the architecture's name in the zoo.
        model: maps images (B, 3, H, W) float32, normalised, to logits (B, num_classes).
        head: qualified names of the modules that produce the classes; everything else is backbone.
        stages: what the head sees beside its own input.
        preprocessing: of the weights, not of the architecture.
        weights: where the weights came from.
        head_start: which rows of the head came with the weights, and why; None where there are no weights.
        build_options: arguments of the architecture that depend on the weights (ViT's image_size).
        temperature: of the probabilities, from the saved model; 1 for any other.
        notes: what was taken from a checkpoint that holds more than weights, for people.
        task: what its outputs mean; that of the saved model.
        tta: ``flip`` if the model's logits are the means over each image and its mirror image.
    """

    name: str
    model: nn.Module
    head: tuple[str, ...]
    preprocessing: Preprocessing
    weights: WeightsTag
    head_start: HeadStart | None = None
    build_options: dict[str, int] = field(default_factory=dict)
    temperature: float = 1.0
    notes: tuple[str, ...] = ()
    task: TaskName = "single-label"
    stages: tuple[Stage, ...] = ()
    tta: TtaName = "none"

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of inputs (B, 3, H, W), test-time augmentation included."""
        logits: Tensor = self.model(inputs)
        return (logits + self.model(inputs.flip(-1))) / 2 if self.tta == "flip" else logits

    @property
    def head_is_new(self) -> bool:
        """Whether no part of the head came with the weights."""
        return self.head_start is None or self.head_start.is_new

    @property
    def head_modules(self) -> list[nn.Module]:
        """The modules of the head, in the order of ``head``."""
        return [self.model.get_submodule(name) for name in self.head]
