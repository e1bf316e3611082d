import pytest
import torch
import torchvision
from torch import nn

from tl_cli.models.list import counting
from tl_cli.models.zoo import registry


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "densenet121", "regnet_y_400mf"]
)
def test_counts_are_the_published_ones(name: str) -> None:
    meta = torchvision.models.get_model_weights(name)["DEFAULT"].meta
    count = counting.count(name, registry.about(name).input_size)
    assert count is not None
    assert count.parameters == meta["num_params"]
    assert count.multiply_adds / 1e9 == pytest.approx(meta["_ops"], rel=0.02)


def test_a_convolution_and_a_product_are_counted_by_hand() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 5 * 5, 10))
    with counting.Counting() as counted, torch.no_grad():
        layers(torch.zeros(1, 3, 5, 5))
    assert counted.flops == 2 * (8 * 3 * 3 * 3 * 5 * 5 + 8 * 5 * 5 * 10)


def test_a_network_that_cannot_run_on_the_meta_device_is_not_counted() -> None:
    assert counting.count("inception_v3", 8) is None
