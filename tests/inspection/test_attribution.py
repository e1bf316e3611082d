import sys

import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import classifier_of, randomise_constants
from tl_cli.errors import UsageError
from tl_cli.inspection.attribution import grad_cam
from tl_cli.models import freezing
from tl_cli.models.zoo import registry


class Spot(nn.Module):
    """Logit 0 is the redness of the image, logit 1 its blueness; its maps have the given layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.patch = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        weight = torch.zeros(2, 3, 4, 4)
        weight[0, 0], weight[1, 2] = 1 / 16, 1 / 16
        self.patch.weight = nn.Parameter(weight)
        self.body = nn.Linear(2, 2, bias=False)
        self.body.weight = nn.Parameter(torch.eye(2))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = nn.Parameter(torch.eye(2))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.patch(images).permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = torch.cat([torch.zeros(len(maps), 1, 2), maps.flatten(1, 2)], 1)
            return self.head(self.act(self.body(tokens))[:, 1:].mean(1))
        return self.head(self.act(self.body(maps)).mean((1, 2)))


@pytest.mark.parametrize("layout", ["channels last", "tokens"])
def test_the_heatmap_is_at_the_position_of_the_class(layout: str) -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, :8, :8] = 1  # red above left
    images[:, 2, 16:24, 24:] = 1  # blue below right
    heatmaps = grad_cam(classifier_of(Spot(layout)), images, [0, 1])
    assert heatmaps.heat.shape == (2, 32, 32)
    assert heatmaps.grid == (8, 8)
    red, blue = heatmaps.heat
    assert red[:8, :8].mean() > 0.8
    assert red[16:, 16:].max() == 0
    assert blue[16:24, 24:].mean() > 0.8
    assert blue[:8, :8].max() == 0
    assert heatmaps.heat.amax((1, 2)).tolist() == pytest.approx([1, 1])


def test_without_positive_evidence_the_heat_is_zero() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, :8, :8] = 1
    net = Spot("channels last")
    with torch.no_grad():
        net.head.weight[1] = torch.tensor([-1.0, 0.0])
    heatmaps = grad_cam(classifier_of(net), images, [1])
    assert not heatmaps.heat.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("resnet18", 2),
        ("squeezenet1_1", 3),
        ("densenet121", 2),
        ("swin_t", 2),
        ("timm/test_vit", 10),
        ("mobilenet_v3_small", 2),
    ],
)
def test_cnns_and_transformers_have_heatmaps(name: str, grid: int) -> None:
    size = 64 if "/" not in name else registry.about(name).input_size
    classifier = registry.create(name, 4, weights="none", input_size=size)
    randomise_constants(classifier.model)
    # The backbone is frozen, as in the middle of a run.
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    heatmaps = grad_cam(classifier, torch.randn(2, 3, size, size), [1, 3])
    assert heatmaps.grid == (grid, grid)
    assert heatmaps.heat.shape == (2, size, size)
    assert torch.isfinite(heatmaps.heat).all()
    assert not any(module._forward_hooks for module in classifier.model.modules())


def test_a_network_without_positions_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(48, 8), nn.Linear(8, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images.flatten(1)))

    with pytest.raises(UsageError, match="no layer that keeps image positions"):
        grad_cam(classifier_of(Flat()), torch.randn(1, 3, 4, 4), [0])


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"tl-train\[explain\]"):
        grad_cam(classifier_of(Spot("tokens")), torch.randn(1, 3, 32, 32), [0])
