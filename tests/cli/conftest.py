"""Fixtures for tests of commands."""

from pathlib import Path

import pytest
import torch

from tests.support.pictures import COLOURS
from tl_cli.contract import DataSpec, ModelCard, Preprocessing, WeightsTag
from tl_cli.models import bundle
from tl_cli.models.zoo import registry


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved model with random weights."""
    classifier = registry.create("timm/test_resnet", len(COLOURS), weights="none", input_size=32)
    torch.manual_seed(0)
    for parameter in classifier.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    card = ModelCard(
        architecture="timm/test_resnet", head=classifier.head, classes=tuple(sorted(COLOURS)),
        preprocessing=Preprocessing(resize=32, crop=32), weights=WeightsTag(name="none"),
        data=DataSpec(source="/nowhere", layout="classes"), recipe="default", epoch=1,
    )  # fmt: skip
    bundle.save(tmp_path / "saved", classifier.model, card)
    return tmp_path / "saved"
