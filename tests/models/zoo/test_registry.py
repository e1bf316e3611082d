from pathlib import Path

import pytest
import torch
import torchvision

from tests.support.zoo import NAME, card, every, trained
from tl_cli.contract import DataSpec, ModelCard, Preprocessing
from tl_cli.errors import UnknownModelError, WeightsError
from tl_cli.models import bundle, freezing
from tl_cli.models.list.families import family_of
from tl_cli.models.zoo import registry

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


# The classifier of each torchvision module, from its source.
HEADS = {
    "alexnet": "classifier.6", "convnext": "classifier.2", "densenet": "classifier", "efficientnet": "classifier.1",
    "googlenet": "fc", "inception": "fc", "maxvit": "classifier.5", "mnasnet": "classifier.1", "mobilenetv2": "classifier.1",
    "mobilenetv3": "classifier.3", "regnet": "fc", "resnet": "fc", "shufflenetv2": "fc", "squeezenet": "classifier.1",
    "swin_transformer": "head", "vgg": "classifier.6", "vision_transformer": "heads.head",
}  # fmt: skip


def module_of(name: str) -> str:
    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def smallest_of_each_family() -> list[str]:
    """Return the model with the fewest parameters of each family; models of a family differ only in depth and width."""
    families: dict[str, list[str]] = {}
    for name in TORCHVISION:
        families.setdefault(family_of(name, module_of(name)).title, []).append(name)

    def parameters(name: str) -> int:
        return torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"]

    return [min(members, key=parameters) for members in families.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", every(8, TORCHVISION))
def test_the_head_of_every_torchvision_model_is_found(name: str) -> None:
    assert registry.find_head(name) == (HEADS[module_of(name)],)


@pytest.mark.slow
@pytest.mark.parametrize("name", every(4, smallest_of_each_family()))
def test_in_every_torchvision_family_only_the_head_trains_and_the_output_is_one_tensor_of_logits(name: str) -> None:
    _, size = registry.size_limits(name)
    with torch.device("meta"):
        model = registry.build(name, 7, registry.options_for(name, size))
        images = torch.empty(2, 3, size, size)
    head = [model.get_submodule(part) for part in registry.find_head(name)]
    freezing.freeze_backbone(model, head)
    expected = {id(parameter) for module in head for parameter in module.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == expected
    assert expected
    # In training mode too: auxiliary heads would make it a tuple.
    for mode in (False, True):
        model.train(mode)
        assert model(images).shape == (2, 7)


def test_every_torchvision_model_is_listed() -> None:
    assert len(TORCHVISION) == 80
    assert set(registry.names("torchvision")) == {*TORCHVISION}
    assert registry.names("bundled") == [f"efficientnet_lite{number}" for number in range(3)]


def test_efficientnet_b0_has_the_published_counts() -> None:
    classifier = registry.create("efficientnet_b0", 10, weights="none")
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    parameters = list(classifier.model.parameters())
    assert sum(p.numel() for p in parameters) == 4_020_358
    assert sum(p.numel() for p in parameters if p.requires_grad) == 12_810


@pytest.mark.parametrize(("typed", "suggestion"), [("resnt18", "resnet18"), ("efficientnetb0", "efficientnet_b0")])
def test_a_mistyped_name_suggests_the_nearest_one(typed: str, suggestion: str) -> None:
    with pytest.raises(UnknownModelError, match=suggestion):
        registry.create(typed, 10)


def test_random_weights_depend_on_the_seed_only_and_leave_the_random_state_unchanged() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        registry.create("shufflenet_v2_x0_5", 3, weights="none", seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_vit_with_weights_from_a_file_accepts_another_input_size(tmp_path) -> None:
    weights = tmp_path / "vit.pth"
    torch.save(registry.build("vit_b_32", 5).state_dict(), weights)
    classifier = registry.create("vit_b_32", 5, weights=str(weights), input_size=64)
    assert classifier.build_options == {"image_size": 64}
    with torch.inference_mode():
        assert classifier.model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_the_starting_point_of_a_saved_model_is_restored(tmp_path: Path) -> None:
    weights = tmp_path / "random.pth"
    torch.save(registry.create("resnet18", 10, weights="none", seed=5).model.state_dict(), weights)
    start = registry.create("resnet18", 3, weights=str(weights), classes=("a", "b", "c"))
    facts = ModelCard(
        architecture="resnet18", head=start.head, classes=("a", "b", "c"), preprocessing=start.preprocessing,
        weights=start.weights, data=DataSpec(source="digits", layout="classes"), recipe="default", epoch=1,
        config={"model": "resnet18", "weights": str(weights), "seed": 0},
    )  # fmt: skip
    was = registry.starting_point(facts)
    assert all(torch.equal(value, start.model.state_dict()[key]) for key, value in was.model.state_dict().items())
    random = registry.create("resnet18", 3, weights="none", seed=7)
    again = registry.starting_point(
        facts.model_copy(update={"config": {"weights": "none", "seed": 7}, "weights": random.weights})
    )
    assert torch.equal(again.model.layer4[1].conv2.weight, random.model.layer4[1].conv2.weight)
    torch.save(registry.create("resnet18", 10, weights="none", seed=6).model.state_dict(), weights)
    with pytest.raises(WeightsError, match="have changed since"):
        registry.starting_point(facts)
    weights.unlink()
    with pytest.raises(WeightsError, match="no weights at"):
        registry.starting_point(facts)


@pytest.mark.parametrize(("classes", "is_new"), [(("a", "b", "c"), False), (("x", "y", "z"), True)])
def test_a_saved_model_keeps_its_head_for_its_own_classes(classes, is_new: bool, tmp_path: Path) -> None:
    model = trained()
    bundle.save(tmp_path / "best", model, card(("a", "b", "c")))
    loaded = registry.create(NAME, 3, weights=str(tmp_path / "best"), classes=classes)
    assert loaded.head_is_new is is_new
    assert torch.equal(loaded.model.fc.weight, model.fc.weight) is not is_new
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)


def test_a_saved_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    bundle.save(tmp_path, trained(), card(("a", "b", "c")))
    with pytest.raises(WeightsError, match=f"are for {NAME}, not for resnet18"):
        registry.create("resnet18", 3, weights=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "side", "message"),
    [("vit_b_32", 96, "build_options are for 64 pixels"), ("squeezenet1_1", 4, "squeezenet1_1 cannot take it")],
)
def test_an_input_size_that_the_model_cannot_take_is_refused_when_it_is_opened(
    architecture: str, side: int, message: str, tmp_path: Path
) -> None:
    classifier = registry.create(architecture, 3, weights="none", input_size=64)
    how = Preprocessing(resize=side, crop=side)
    edited = card(("a", "b", "c"), architecture).model_copy(
        update={"head": classifier.head, "build_options": classifier.build_options, "preprocessing": how}
    )
    bundle.save(tmp_path, classifier.model, edited)
    with pytest.raises(WeightsError, match=f"preprocessing.crop is {side}, and {message}"):
        registry.restore(tmp_path)
