import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.test_bundle import card
from tests.support.networks import assert_equals_the_whole
from tl_cli.errors import WeightsError
from tl_cli.models import bundle, freezing
from tl_cli.models.classifier import Classifier
from tl_cli.models.graph import Network
from tl_cli.models.stages import join_stages
from tl_cli.models.zoo import registry

# The last modules of stages with output strides 8, 16 and 32, as the papers list them.
STAGES = {
    # Table 1 of EfficientNet: stages 4 to 8, of 40, 80, 112, 192 and 320 channels; the head sees the ninth.
    "efficientnet_b0": [("features.3.1", 40), ("features.4.2", 80), ("features.5.2", 112), ("features.6.3", 192),
                        ("features.7.0", 320)],
    # The mean of layer4 is what the head sees anyway.
    "resnet18": [("layer2.1", 128), ("layer3.1", 256)],
    "resnet50": [("layer2.3", 512), ("layer3.5", 1024)],
    "swin_t": [("features.3.1", 192), ("features.5.5", 384)],
    # Tokens of one width: after a quarter, half and three quarters of the encoder.
    "vit_b_16": [("encoder.layers.encoder_layer_2", 768), ("encoder.layers.encoder_layer_5", 768),
                 ("encoder.layers.encoder_layer_8", 768)],
}  # fmt: skip


def staged(name: str, size: int, classes: int = 5) -> Classifier:
    stages = registry.find_stages(name)
    classifier = registry.create(name, classes, weights="none", input_size=size, stages=stages, seed=3)
    head = classifier.head_modules[0]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    return classifier


def pictures(size: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_last_three_resolutions(name: str) -> None:
    found = [(stage.module, stage.channels) for stage in registry.find_stages(name)]
    if name == "vit_b_16":
        assert [channels for _, channels in found] == [768] * 3
        indices = [int(module.rpartition("_")[2]) for module, _ in found]
        assert indices == pytest.approx([2, 5, 8], abs=1)
    else:
        assert found == STAGES[name]


@pytest.mark.parametrize("name", ["timm/levit_128s", "squeezenet1_1"])
def test_a_network_with_two_heads_or_a_convolution_as_head_has_none(name: str) -> None:
    assert registry.find_stages(name) == ()


@pytest.mark.parametrize(("name", "size"), [
    ("efficientnet_b0", 64), ("resnet18", 64), ("densenet121", 64), ("swin_t", 64), ("mobilenet_v3_small", 64),
    ("timm/vit_tiny_patch16_224", 32), ("timm/convnext_atto", 64),
])  # fmt: skip
def test_the_head_sees_its_input_and_the_mean_of_each_stage(name: str, size: int) -> None:
    plain = registry.create(name, 5, weights="none", input_size=size, seed=3)
    joined = staged(name, size)
    assert joined.stages
    outputs: dict[str, torch.Tensor] = {}
    for stage in joined.stages:
        # Maps are (B, C, H, W) or (B, H, W, C); tokens (B, N, C).
        plain.model.get_submodule(stage.module).register_forward_hook(
            lambda module, inputs, output, key=stage.module: outputs.update({key: output.clone()})
        )
    plain.head_modules[0].register_forward_pre_hook(lambda module, inputs: outputs.update({"own": inputs[0]}))
    images = pictures(size)
    for training in (False, True):
        for model in (plain.model, joined.model):
            model.train(training)
        with torch.no_grad():
            torch.manual_seed(0)
            plain.model(images)
            torch.manual_seed(0)
            logits = joined.model(images)
        means = []
        for stage in joined.stages:
            output = outputs[stage.module]
            channels = output.movedim(1, -1) if output.dim() == 4 and output.shape[1] == stage.channels else output
            assert channels.shape[-1] == stage.channels
            means.append(channels.reshape(len(images), -1, stage.channels).mean(1))
        head = joined.head_modules[0]
        features = torch.cat([outputs["own"], *means], 1)
        torch.testing.assert_close(logits, features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)


def test_names_and_class_stay_and_only_the_head_is_wider() -> None:
    plain = registry.create("resnet18", 5, weights="none", input_size=64)
    joined = staged("resnet18", 64)
    shapes, expected = ({k: v.shape for k, v in each.model.state_dict().items()} for each in (joined, plain))
    assert shapes.pop("fc.weight") == (5, 512 + 128 + 256)
    del expected["fc.weight"]
    assert shapes == expected
    assert isinstance(joined.model, type(plain.model))
    assert type(joined.model).__name__ == "ResNet"


def test_a_copy_computes_with_its_own_weights() -> None:
    joined = staged("resnet18", 64)
    copied, images = copy.deepcopy(joined.model).eval(), pictures(64)
    before = joined.model.eval()(images)
    with torch.no_grad():
        copied.layer1[0].conv1.weight.zero_()
    assert torch.equal(joined.model(images), before)
    assert not torch.allclose(copied(images), before)


@pytest.mark.parametrize("module", ["layer9", "layer3.1.conv1"])
def test_a_wrong_stage_is_refused(module: str) -> None:
    stage = registry.find_stages("resnet18")[0].model_copy(update={"module": module})
    with pytest.raises(WeightsError, match=module):
        join_stages(registry.build("resnet18", 5), ("fc",), (stage,))


def test_the_saved_model_has_the_same_logits(tmp_path: Path) -> None:
    joined, images = staged("resnet18", 64, classes=2), pictures(64)
    facts = card(("a", "b")).model_copy(
        update={"architecture": "resnet18", "head": ("fc",), "stages": joined.stages, "format": 2, "build_options": {}}
    )
    bundle.save(tmp_path, joined.model, facts)
    restored, read = registry.restore(tmp_path)
    assert read.stages == restored.stages == joined.stages
    torch.testing.assert_close(restored.model(images), joined.model.eval()(images))
    # The head is kept by weights with the same stages, and new for any other head.
    again = registry.create("resnet18", 2, weights=str(tmp_path), stages=joined.stages)
    assert torch.equal(again.model.fc.weight, joined.model.fc.weight)
    other = registry.create("resnet18", 2, weights=str(tmp_path), stages=())
    assert other.head_is_new
    assert torch.equal(other.model.layer1[0].conv1.weight, joined.model.layer1[0].conv1.weight)
    assert torch.equal(other.model.fc.weight, torch.zeros(2, 512))


@pytest.mark.parametrize(("name", "size", "first"), [
    ("resnet18", 64, "layer3"), ("efficientnet_b0", 64, "features.5"), ("timm/vit_tiny_patch16_224", 32, "blocks.7"),
])  # fmt: skip
def test_frozen_layers_can_be_cut_off_with_the_means_of_their_stages(name: str, size: int, first: str) -> None:
    joined, images = staged(name, size), pictures(size)
    freezing.unfreeze(joined.model, "frozen")
    frozen = []
    for path, module in joined.model.named_modules():
        if path == first:
            break
        if path and not any(True for _ in module.children()):
            frozen.append(module)
    frozen_parameters = [p for module in frozen for p in module.parameters()]
    frozen_parameters += list(joined.model.parameters(recurse=False))
    freezing.freeze(frozen, frozen_parameters)
    cut = Network(joined, images[:1]).cut()
    assert cut is not None
    assert cut.is_map
    trained = [p for p in joined.model.parameters() if p.requires_grad]
    assert_equals_the_whole(cut, joined.model, images, trained)


def test_the_head_alone_trains_on_one_vector_per_image() -> None:
    joined = staged("resnet18", 64)
    freezing.freeze_backbone(joined.model, joined.head_modules)
    cut = Network(joined, pictures(64, 1)).cut()
    assert cut is not None
    assert (cut.shape, cut.is_map) == ((512 + 128 + 256,), False)
    assert isinstance(joined.head_modules[0], nn.Linear)
