import pytest

from tests.support.zoo import MEMBERS, on_meta
from tl_cli.errors import UsageError
from tl_cli.models.layers import index_of, layers_of
from tl_cli.models.zoo import registry


@pytest.mark.slow
@pytest.mark.parametrize("name", [*registry.names("torchvision")[::5], *(f"timm/{name}" for name in MEMBERS[::8])])
def test_every_parameter_is_in_exactly_one_layer_and_the_head_is_last(name: str) -> None:
    classifier, example = on_meta(name)
    layers = layers_of(classifier, example)
    inside = [id(parameter) for layer in layers for parameter in layer.parameters]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(parameter) for parameter in classifier.model.parameters()}
    assert [layer.is_head for layer in layers] == [False] * (len(layers) - 1) + [True]
    assert len(layers) > 4


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 10, "conv1", "layer4.1"),  # stem, 8 blocks, head
        ("vit_b_16", 14, "conv_proj", "encoder.layers.encoder_layer_11"),  # patches, 12 blocks, head
        ("efficientnet_b0", 19, "features.0.0", "features.8.0"),  # stem, 16 blocks, last convolution, head
        ("densenet121", 63, "features.conv0", "features.denseblock4.denselayer16"),
        ("timm/vit_tiny_patch16_224", 14, "patch_embed", "blocks.11"),
        ("timm/regnety_002", 15, "stem", "s4.b7"),
    ],
)
def test_a_layer_is_a_block_of_the_architecture(name: str, count: int, first: str, last: str) -> None:
    layers = layers_of(*on_meta(name))
    assert (len(layers), layers[0].name, layers[-2].name) == (count, first, last)


def test_tokens_and_position_embeddings_belong_to_the_first_layer() -> None:
    classifier, example = on_meta("timm/vit_tiny_patch16_224")
    first = layers_of(classifier, example)[0]
    assert {id(classifier.model.pos_embed), id(classifier.model.cls_token)} <= {id(p) for p in first.parameters}


@pytest.mark.parametrize(("name", "index"), [("layer3", 5), ("layer3.1", 6), ("conv1", 0), ("layer1", 1)])
def test_a_layer_is_found_by_its_name_or_its_stages(name: str, index: int) -> None:
    classifier, example = on_meta("resnet18", 64)
    assert index_of(layers_of(classifier, example), classifier, name) == index


@pytest.mark.parametrize(
    ("model", "until"),
    [
        ("convnext_tiny", "features.2"),
        ("timm/convnext_atto", "stages.1"),
        ("densenet121", "features.transition1"),
        ("swin_t", "features.2"),
        ("timm/vit_tiny_patch16_224", "blocks.3"),
    ],
)
def test_a_named_stage_begins_at_its_first_parameter(model: str, until: str) -> None:
    """A norm at the beginning of a stage belongs to that stage, not to the previous block."""
    classifier, example = on_meta(model)
    layers = layers_of(classifier, example)
    index = index_of(layers, classifier, until)
    inside = {id(p) for layer in layers[index:] for p in layer.parameters}
    before = {id(p) for layer in layers[:index] for p in layer.parameters}
    assert {id(p) for p in classifier.model.get_submodule(until).parameters()} <= inside
    names = [name for name, p in classifier.model.named_parameters() if id(p) in before]
    assert names
    assert not any(name.startswith(f"{until}.") for name in names)
    order = [name for name, _ in classifier.model.named_parameters()]
    first = next(index for index, name in enumerate(order) if name.startswith(f"{until}."))
    assert {id(p) for _, p in list(classifier.model.named_parameters())[:first]} <= before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer3.1.conv1", r"is part of the layer layer3\.1"),
        ("layr3", r"no layer 'layr3'. Did you mean .*layer3"),
        ("fc", "is the head"),
        ("bn1", "is part of the layer conv1"),
    ],
)
def test_a_name_that_is_not_a_layer_is_refused(name: str, message: str) -> None:
    classifier, example = on_meta("resnet18", 64)
    with pytest.raises(UsageError, match=message):
        index_of(layers_of(classifier, example), classifier, name)
