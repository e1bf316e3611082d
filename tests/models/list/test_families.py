import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import timm
import torchvision
from timm.models._registry import _model_to_module

from tl_cli.models.list.families import Family, family_of, rules

TABLE = list(dict.fromkeys(family for _, _, family in rules()))


def torchvision_models() -> Iterator[tuple[str, str]]:
    for name in torchvision.models.list_models(module=torchvision.models):
        yield name, torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def timm_models() -> Iterator[tuple[str, str]]:
    for name in timm.list_models():
        yield name, _model_to_module[name]


MODELS = [*torchvision_models(), *timm_models()]


def test_nearly_every_architecture_of_both_libraries_has_a_family() -> None:
    """A version of timm newer than the table may have a few new architectures."""
    assert len(MODELS) > 1000
    unknown = [name for name, module in MODELS if family_of(name, module).year is None]
    assert len(unknown) < 0.02 * len(MODELS), unknown


def test_every_row_is_used() -> None:
    used = {family_of(name, module) for name, module in MODELS}
    assert [family.title for family in TABLE if family not in used] == []


def test_every_pattern_decides_for_some_architecture() -> None:
    unused = set(rules())
    for name, module in MODELS:
        unused.discard(next(r for r in rules() if r[0] == module and fnmatchcase(name, r[1])))
    assert unused == set()


def test_titles_are_unique() -> None:
    titles = [family.title for family in TABLE]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family.title)
def test_a_row_is_a_year_and_one_short_plain_sentence(family: Family) -> None:
    assert family.year is not None
    assert 2012 <= family.year <= 2026
    assert (family.title + family.line).isascii()
    assert len(family.line) <= 100
    assert family.line.endswith(".")
    assert ". " not in family.line


def test_importing_the_table_imports_no_torch() -> None:
    code = "import sys, tl_cli.models.list.families; print({'torch', 'torchvision', 'timm'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_one_family_in_both_libraries_is_one_row() -> None:
    ours = {family_of(name, module).title for name, module in torchvision_models()}
    theirs = {family_of(name, module).title for name, module in timm_models()}
    assert ours - theirs == {"AlexNet", "GoogLeNet", "SqueezeNet", "ShuffleNet V2"}


@pytest.mark.parametrize(
    ("name", "module", "title", "year"),
    [
        ("alexnet", "alexnet", "AlexNet", 2012),
        ("vgg16_bn", "vgg", "VGG", 2014),
        ("googlenet", "googlenet", "GoogLeNet", 2014),
        ("inception_v3", "inception", "Inception v3", 2015),
        ("resnet50", "resnet", "ResNet", 2015),
        ("resnet50d", "resnet", "ResNet-D", 2018),
        ("resnetaa50d", "resnet", "Anti-aliased ResNet", 2019),
        ("resnext50_32x4d", "resnet", "ResNeXt", 2016),
        ("seresnextaa101d_32x8d", "resnet", "SENet", 2017),
        ("resnet50_clip", "byobnet", "CLIP", 2021),
        ("resnetv2_50x1_bit", "resnetv2", "Big Transfer (BiT)", 2019),
        ("densenet121", "densenet", "DenseNet", 2016),
        ("dla60_res2net", "dla", "Res2Net", 2019),
        ("mnasnet1_0", "mnasnet", "MNASNet", 2018),
        ("semnasnet_100", "efficientnet", "MNASNet", 2018),
        ("mobilenet_v2", "mobilenetv2", "MobileNetV2", 2018),
        ("mobilenet_v3_small", "mobilenetv3", "MobileNetV3", 2019),
        ("mobilenetv4_conv_small", "mobilenetv3", "MobileNetV4", 2024),
        ("efficientnet_b0", "efficientnet", "EfficientNet", 2019),
        ("tf_efficientnet_lite0", "efficientnet", "EfficientNet-Lite", 2020),
        ("efficientnet_v2_s", "efficientnet", "EfficientNetV2", 2021),
        ("tf_efficientnetv2_s", "efficientnet", "EfficientNetV2", 2021),
        ("regnet_y_16gf", "regnet", "RegNet", 2020),
        ("regnetz_b16", "byobnet", "RegNetZ", 2021),
        ("convnext_tiny", "convnext", "ConvNeXt", 2022),
        ("convnextv2_tiny", "convnext", "ConvNeXt V2", 2023),
        ("vit_b_16", "vision_transformer", "ViT", 2020),
        ("vit_base_patch14_reg4_dinov2", "vision_transformer", "DINOv2", 2023),
        ("vit_so400m_patch14_siglip_384", "vision_transformer", "SigLIP", 2023),
        ("vit_base_patch16_reg4_gap_256", "vision_transformer", "ViT, registers", 2023),
        ("deit3_base_patch16_224", "deit", "DeiT III", 2022),
        ("swin_t", "swin_transformer", "Swin", 2021),
        ("swin_v2_t", "swin_transformer", "Swin V2", 2021),
        ("maxvit_t", "maxvit", "MaxViT", 2022),
        ("eva02_large_patch14_clip_336", "eva", "EVA-CLIP", 2023),
        ("vit_7b_patch16_dinov3", "eva", "DINOv3", 2025),
    ],
)
def test_well_known_models_are_in_their_families(name: str, module: str, title: str, year: int) -> None:
    family = family_of(name, module)
    assert (family.title, family.year) == (title, year)


def test_an_unknown_architecture_is_titled_by_its_module_without_a_year() -> None:
    family = family_of("futurenet_base", "futurenet")
    assert (family.title, family.year) == ("futurenet", None)
