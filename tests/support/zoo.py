"""Small models, their cards and a local copy of the Hugging Face hub."""

import hashlib
from collections.abc import Iterable, Iterator

import pytest
import safetensors.torch
import torch
from _pytest.mark.structures import ParameterSet
from timm.models import list_models, list_modules

from tests.support.server import Server
from tl_cli.contract import DataSpec, ModelCard, Preprocessing, WeightsTag
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.timm_models import UNSUPPORTED

COMMIT = "a" * 40


_SMALL = ("atto", "femto", "pico", "nano", "tiny", "xxs", "small", "_b0", "_m0", "_s0", "_s18", "iformer_t", "2d_s", "lite0", "resnet18")  # fmt: skip


SHORT_ROWS = {"sequencer2d_s": 64}


def family_members() -> Iterator[str]:
    """Return a small architecture of every timm module, by the module's name."""
    for module in list_modules():
        members = [name for name in list_models(module=module) if name not in UNSUPPORTED]
        assert members, module
        real = [name for name in members if not name.startswith("test_")]
        yield min(real, key=lambda name: (not any(word in name for word in _SMALL), len(name), name))


MEMBERS = list(family_members())


def every(step: int, names: Iterable[str]) -> list[ParameterSet]:
    """Return all names as test parameters; only every ``step``-th one is not marked slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] if index % step else []) for index, name in enumerate(names)]


def publish(hub: Server, repo: str, filename: str, model: torch.nn.Module) -> str:
    body = safetensors.torch.save({key: value.contiguous() for key, value in model.state_dict().items()})
    path = f"/{repo}/resolve/main/{filename}"
    sha = hashlib.sha256(body).hexdigest()
    hub.files[path] = body
    hub.headers[path] = {"ETag": f'"{sha}"', "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha}"'}
    return sha


def on_meta(name: str, size: int | None = None) -> tuple[Classifier, torch.Tensor]:
    size = size or registry.about(name).input_size
    with torch.device("meta"):
        model = registry.build(name, 7, registry.options_for(name, size))
        example = torch.empty(1, 3, size, size)
    return Classifier(
        name, model, registry.find_head(name), registry.default_preprocessing(name), WeightsTag(name="none")
    ), example


NAME = "shufflenet_v2_x0_5"


def trained(num_classes: int = 3, seed: int = 5) -> torch.nn.Module:
    model = registry.create(NAME, num_classes, weights="none", seed=seed).model
    model.fc.weight.data.normal_()
    return model


def card(classes: tuple[str, ...], architecture: str = NAME) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        head=("fc",),
        classes=classes,
        preprocessing=Preprocessing(resize=40, crop=32, mean=(0.1, 0.2, 0.3)),
        weights=WeightsTag(name="none"),
        data=DataSpec(source="digits", layout="classes"),
        recipe="default",
        epoch=1,
    )
