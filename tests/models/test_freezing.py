import copy

import pytest
import torch

from tl_cli.models import freezing
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

FAMILIES = [
    ("efficientnet_b0", 32),
    ("resnet18", 32),
    ("densenet121", 32),
    ("mobilenet_v3_small", 32),
    ("squeezenet1_1", 64),
    ("convnext_tiny", 32),
    ("vgg11_bn", 32),
    ("googlenet", 64),
    ("vit_b_32", 32),
    ("shufflenet_v2_x0_5", 32),
    ("efficientnet_lite0", 32),
]


def small(name: str, size: int) -> Classifier:
    return registry.create(name, 3, weights="none", input_size=size)


def train_once(classifier: Classifier, size: int) -> None:
    model = classifier.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(2):
        torch.manual_seed(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_frozen_parameters_and_buffers_are_bit_identical(name: str, size: int) -> None:
    classifier = small(name, size)
    before = copy.deepcopy(classifier.model.state_dict())
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    train_once(classifier, size)
    after = classifier.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.rpartition(".")[0] in classifier.head}


def test_frozen_modules_stay_in_eval_mode_when_train_is_called() -> None:
    classifier = small("efficientnet_b0", 32)
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    for model in (classifier.model, copy.deepcopy(classifier.model)):
        model.train()
        in_training = {name for name, module in model.named_modules() if module.training}
        assert in_training == {"classifier.1"}


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_unfrozen_batch_norm_follows_the_flag(mode: freezing.BatchNormMode) -> None:
    classifier = small("resnet18", 32)
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    freezing.unfreeze(classifier.model, mode)
    before = copy.deepcopy(classifier.model.state_dict())
    train_once(classifier, 32)
    after = classifier.model.state_dict()
    statistics = [key for key in before if "running" in key]
    assert all(torch.equal(before[key], after[key]) == (mode == "frozen") for key in statistics)
    weights = [key for key, _ in classifier.model.named_parameters()]
    assert not any(torch.equal(before[key], after[key]) for key in weights)


def test_unfrozen_modules_train_again() -> None:
    classifier = small("resnet18", 32)
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    freezing.unfreeze(classifier.model, "train")
    classifier.model.train()
    assert all(module.training for module in classifier.model.modules())
