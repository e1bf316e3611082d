import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config
from timm.models import list_models, list_modules
from torch import Tensor

from tests.support.server import Server
from tests.support.zoo import MEMBERS, SHORT_ROWS, card, every, publish
from tl_cli.contract import Preprocessing
from tl_cli.data.images import PackedImages
from tl_cli.data.packed_names import Names
from tl_cli.data.preprocess import normalise, resize_crop
from tl_cli.errors import UnknownModelError, UsageError, WeightsError
from tl_cli.inspection.label_check import find_suspect_labels
from tl_cli.models import bundle, freezing
from tl_cli.models.list.completion import UNSUPPORTED
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.timm_models import TimmSource

# On the meta device an LSTM is taken apart step by step, and each step is a pixel of a row or a column.


def test_every_timm_family_is_listed() -> None:
    assert len(MEMBERS) == len(list_modules()) >= 98
    assert set(registry.names("timm")) == {f"timm/{name}" for name in list_models()} - {
        f"timm/{n}" for n in UNSUPPORTED
    }


@pytest.mark.slow
@pytest.mark.parametrize("plain", every(8, MEMBERS))
def test_in_every_timm_family_the_head_is_the_one_that_timm_names_and_only_it_trains(plain: str) -> None:
    name = f"timm/{plain}"
    size = SHORT_ROWS.get(plain, registry.about(name).input_size)
    with torch.device("meta"):
        model = registry.build(name, 7, registry.options_for(name, size))
        images = torch.empty(2, 3, size, size)
    head = registry.find_head(name)
    known = model.pretrained_cfg["classifier"]
    assert set(head) == ({known} if isinstance(known, str) else set(known))
    modules = [model.get_submodule(part) for part in head]
    freezing.freeze_backbone(model, modules)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(parameter) for module in modules for parameter in module.parameters()
    }
    for mode in (False, True):
        model.train(mode)
        assert model(images).shape == (2, 7)


@pytest.mark.parametrize("plain", sorted(UNSUPPORTED))
def test_the_error_for_an_unsupported_architecture_gives_the_reason(plain: str) -> None:
    with pytest.raises(UnknownModelError, match="cannot be used here: "):
        registry.about(f"timm/{plain}")


def photograph() -> np.ndarray:
    """Return an image with fine detail and unusual sides, so that every resize and crop changes the result."""
    return load_sample_image("china.jpg")[90:391, :397].copy()


def grey_levels_off(how: Preprocessing, expected: Callable[[Image.Image], Tensor]) -> float:
    """Mean difference between what ``how`` and timm make of a photograph; resizing tensors and Pillow differ by 0.02."""
    picture = photograph()
    expected_pixels = expected(Image.fromarray(picture))
    inputs = normalise(resize_crop(torch.from_numpy(picture).permute(2, 0, 1)[None], how), how)[0]
    assert inputs.shape == expected_pixels.shape
    return float(((inputs - expected_pixels) * torch.tensor(how.std).view(3, 1, 1)).abs().mean() * 255)


@pytest.mark.slow  # a few weights: the test below
def test_preprocessing_of_all_published_weights_matches_timm() -> None:
    """timm's own transform, made of the fields of each configuration, on real pixels: once for each that is distinct."""
    fields = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    distinct: dict[str, tuple[str, Callable[[Image.Image], Tensor]]] = {}
    for name in timm.list_pretrained():
        if name.partition(".")[0] not in UNSUPPORTED:
            cfg = timm.get_pretrained_cfg(name)
            transform = create_transform(**{field: getattr(cfg, field) for field in fields}, is_training=False)
            distinct[repr(transform)] = name, transform
    assert len(distinct) > 100
    for name, transform in distinct.values():
        # A resize that is one pixel off, or another interpolation, makes a difference of more than 2.
        assert grey_levels_off(registry.default_preprocessing(f"timm/{name}"), transform) < 0.1, name


@pytest.mark.parametrize("tagged", ["resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "tiny_vit_21m_384.dist_in22k_ft_in1k", "eva02_tiny_patch14_336.mim_in22k_ft_in1k"])  # fmt: skip
def test_preprocessing_of_tagged_weights_matches_timm(tagged: str) -> None:
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model(tagged))
    how = registry.default_preprocessing(f"timm/{tagged}")
    assert grey_levels_off(how, create_transform(**config, is_training=False)) < 0.1
    assert how == registry.default_preprocessing(f"timm/{tagged.partition('.')[0]}", weights=tagged.partition(".")[2])
    # At their own size the preprocessing does not change, including negative margins (VOLO).
    assert how.at(how.crop, whole=False) == how


@pytest.mark.parametrize("changed", [{"interpolation": "lanczos"}, {"mean": (0.5,), "std": (0.5,)}])
def test_preprocessing_that_is_not_supported_is_refused(changed: dict[str, object], tmp_path: Path) -> None:
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"preprocessing of {tmp_path} is not supported.*{next(iter(changed))}"):
        registry.create("timm/test_resnet", 3, weights=str(tmp_path))


def fixed_at_another_size() -> list[str]:
    """Return a member of each family with a fixed and unusual input size."""
    configs = {name: timm.get_pretrained_cfg(name) for name in MEMBERS}
    return [f"timm/{name}" for name, cfg in configs.items() if cfg.fixed_input_size and cfg.input_size[1] != 224]


@pytest.mark.parametrize("name", [*fixed_at_another_size(), "timm/eva02_tiny_patch14_336", "vit_h_14"])
def test_a_model_without_weights_is_built_for_its_default_input_size(name: str) -> None:
    with torch.device("meta"):
        classifier = registry.create(name, None, weights="none")
        side = classifier.preprocessing.crop
        assert side != 224
        assert classifier.model.eval()(torch.empty(1, 3, side, side)).shape == (1, 10)


def test_border_mode_pads_with_the_mean_colour() -> None:
    how = Preprocessing(resize=8, crop=8, crop_mode="border", mean=(0.2, 0.4, 0.6), std=(1.0, 1.0, 1.0))
    wide = torch.full((1, 3, 4, 16), 255, dtype=torch.uint8)
    actual = resize_crop(wide, how)[0]
    assert actual.shape == (3, 8, 8)
    assert (actual[:, 3:5] == 255).all()
    assert actual[:, 0, 0].tolist() == [51, 102, 153]


def test_position_embeddings_are_resampled_to_the_input_size(hub: Server) -> None:
    published = timm.create_model("vit_tiny_patch16_224", num_classes=21843)
    publish(hub, "timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors", published)
    classifier = registry.create("timm/vit_tiny_patch16_224.augreg_in21k", 3, input_size=96)
    assert classifier.build_options == {"img_size": 96}
    assert classifier.model.pos_embed.shape == (1, 6 * 6 + 1, 192)
    assert torch.equal(classifier.model.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)
    with torch.inference_mode():
        assert classifier.model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_tiny_images_are_resized_for_a_model_with_a_fixed_input_size(hub: Server) -> None:
    published = timm.create_model("vit_tiny_patch16_224", num_classes=21843)
    publish(hub, "timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors", published)
    pixels = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    images = PackedImages(Names.of("abcd"), np.array([0, 0, 1, 1]), pixels)
    _, compared = find_suspect_labels(images, "timm/vit_tiny_patch16_224.augreg_in21k", most=4, device="cpu", workers=0)
    assert compared.tolist() == [0, 0, 1, 1]


def test_a_saved_timm_model_is_restored_and_warm_starts_at_another_size(tmp_path: Path) -> None:
    first = registry.create("timm/vit_tiny_patch16_224", 3, weights="none", input_size=64)
    torch.nn.init.normal_(first.model.head.weight)
    preprocessing = first.preprocessing.model_copy(update={"resize": 64, "crop": 64})
    facts = {"head": first.head, "preprocessing": preprocessing, "build_options": first.build_options}
    bundle.save(tmp_path, first.model, card(("a", "b", "c"), first.name).model_copy(update=facts))
    again, _ = registry.restore(tmp_path)
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in first.model.state_dict().items())
    warm = registry.create(
        "timm/vit_tiny_patch16_224.augreg_in21k", 3, weights=str(tmp_path), classes=("a", "b", "c"), input_size=32
    )
    assert not warm.head_is_new
    assert torch.equal(warm.model.head.weight, first.model.head.weight)
    assert warm.model.pos_embed.shape == (1, 5, 192)


def test_weights_that_leave_a_part_of_the_backbone_random_are_refused(hub: Server) -> None:
    published = timm.create_model("resnet18", num_classes=1000)
    del published.layer4[1].bn2
    publish(hub, "timm/resnet18.a1_in1k", "model.safetensors", published)
    with pytest.raises(WeightsError, match=r"layer4\.1\.bn2\.weight"):
        registry.create("timm/resnet18", 10)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm/resnet18.a9_in1k", "default", "has no weights called 'a9_in1k'. Did you mean .*a1_in1k"),
        ("timm/resnet18", "a9_in1k", "has no weights called 'a9_in1k'"),
        ("timm/resnet18.a1_in1k", "a2_in1k", "names the weights 'a1_in1k' and --weights 'a2_in1k'"),
        ("timm/test_vit4", "default", "no published weights"),
    ],
)
def test_the_error_for_unknown_weights_lists_the_existing_ones(name: str, weights: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        registry.create(name, 10, weights=weights)


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("convnextv2_tiny", "timm/convnextv2_tiny"),
        ("resnet-18", "resnet18"),
        ("ViT_B_16", "vit_b_16"),
        ("timm/resnt50", "timm/resnet50"),
        ("vit_tiny_patch16_244", "timm/vit_tiny_patch16_224"),
    ],
)
def test_a_mistyped_name_suggests_the_nearest_one_of_either_library(typed: str, suggestion: str) -> None:
    with pytest.raises(UnknownModelError, match=f"Did you mean .*{suggestion}"):
        registry.create(typed, 10)


def test_the_smallest_input_size_is_found_by_trying() -> None:
    assert registry.size_limits("timm/vit_tiny_patch16_224")[1] == 224
    smallest, own = registry.size_limits("timm/convnext_atto")
    assert (smallest, own) == (32, 224)


def test_stochastic_depth_is_set_or_refused() -> None:
    model = TimmSource().build("timm/convnext_atto", 3, {}, 0.3)
    rates = [module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(UsageError, match="drop-path"):
        registry.build("timm/vgg11", 3, {}, 0.3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("timm/tf_efficientnet_b0_ns", "timm/tf_efficientnet_b0.ns_jft_in1k"),
        ("convnext_tiny_in22ft1k", "timm/convnext_tiny.fb_in22k_ft_in1k"),
    ],
)
def test_the_error_for_a_deprecated_timm_name_gives_the_current_one(old: str, new: str) -> None:
    with pytest.raises(UnknownModelError, match=f"timm calls it {new} now"):
        registry.create(old, 10)


def test_tags_are_accepted_in_any_case_and_with_the_architecture_in_front(hub: Server) -> None:
    publish(hub, "timm/resnet18.a2_in1k", "model.safetensors", timm.create_model("resnet18"))
    for spec in ("A2_IN1K", "resnet18.a2_in1k"):
        assert registry.create("timm/resnet18", 10, weights=spec).weights.name == "timm:resnet18.a2_in1k"


def test_loading_weights_leaves_the_random_state_unchanged(hub: Server) -> None:
    publish(hub, "timm/resnet18.a1_in1k", "model.safetensors", timm.create_model("resnet18"))
    before = torch.get_rng_state()
    registry.create("timm/resnet18", 10)
    assert torch.equal(before, torch.get_rng_state())


def test_a_card_with_an_unknown_head_is_refused(tmp_path: Path) -> None:
    made = registry.create("resnet18", 3, weights="none")
    bundle.save(tmp_path, made.model, card(("a", "b", "c"), "resnet18").model_copy(update={"head": ("nope",)}))
    with pytest.raises(WeightsError, match="nope"):
        registry.restore(tmp_path)


def test_a_folder_that_timm_has_saved_is_read_with_classes_and_preprocessing(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.5, input_size=(3, 64, 64))
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True)
    loaded = registry.create("timm/test_resnet", 3, weights=str(tmp_path), classes=("a", "b", "c"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.head_is_new
    assert (loaded.preprocessing.mean, loaded.preprocessing.crop, loaded.preprocessing.resize) == (
        (0.1, 0.2, 0.3), 64, 128
    )  # fmt: skip
    with pytest.raises(WeightsError, match="are for timm/test_resnet, not for resnet18"):
        registry.create("resnet18", 3, weights=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"config.json is not what timm writes: architecture is missing"):
        registry.create("timm/test_resnet", 3, weights=str(tmp_path))
