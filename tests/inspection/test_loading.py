from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tl_cli.data.photographs import photographs
from tl_cli.errors import DataError
from tl_cli.inspection.loading import LoadOptions, load_architecture
from tl_cli.models.zoo import registry


def test_photographs_come_with_pip_and_are_the_same_every_time() -> None:
    one, other = photographs(12, 64), photographs(12, 64)
    assert one.pixels.shape == (12, 3, 64, 64)
    assert torch.equal(one.pixels, other.pixels)
    assert set(one.labels.tolist()) == {-1}
    assert len({image.numpy().tobytes() for image in one.pixels}) == 12
    assert photographs(5, 64).pixels.equal(one.pixels[:5])
    # Images with content: neither flat nor noise.
    assert one.pixels.float().std((1, 2, 3)).min() > 10


def test_an_architecture_recognises_the_photographs() -> None:
    model = load_architecture("efficientnet_lite0", LoadOptions())
    images = model.open_images()
    loader = images.batches(2)
    assert len(loader.images) == 2
    with torch.inference_mode():
        predicted = torch.cat([model.classifier.model(batch.inputs) for batch in loader.clean()]).argmax(1).tolist()
    # The photographs show a temple in China and a flower.
    assert [model.class_name(each) for each in predicted] == ["bell cote", "daisy"]
    assert (images.labels_fit, images.open_training, images.classes) == (False, None, ())
    prepared = model.prepared(loader.images.open(1))
    assert torch.equal(model.inputs(prepared[None])[0], next(iter(images.batches(2, 2).clean())).inputs[1])


def test_labels_of_other_images_are_unknown(colours: Path) -> None:
    model = load_architecture("squeezenet1_1", LoadOptions(str(colours)), weights="none", input_size=64)
    images = model.open_images()
    assert images.classes == ("blue", "green", "red")
    assert images.source == f"{colours}, test"
    assert {label for batch in images.batches(6).clean() for label in batch.labels.tolist()} == {-1}
    assert {label for batch in images.open(18, None).clean() for label in batch.labels.tolist()} == {0, 1, 2}
    assert images.open_training is not None
    assert len(images.open_training(10).images) == 10
    assert model.classifier.preprocessing.crop == 64


def test_an_image_is_decoded_or_refused(tmp_path: Path, colours: Path) -> None:
    model = load_architecture("squeezenet1_1", LoadOptions(), weights="none")
    assert model.read(colours / "train" / "red" / "000.png").size == (32, 32)
    with pytest.raises(DataError, match="no such file"):
        model.read(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="is a folder"):
        model.read(tmp_path)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match="text.jpg"):
        model.read(tmp_path / "text.jpg")


def test_as_many_outputs_as_the_weights_have(tmp_path: Path) -> None:
    assert registry.create("efficientnet_lite0", None).model.get_submodule("classifier").out_features == 1000
    assert registry.create("resnet18", None, weights="none").model.get_submodule("fc").out_features == 10
    state = registry.create("resnet18", 23, weights="none").model.state_dict()
    save_file(state, tmp_path / "birds.safetensors")
    own = registry.create("resnet18", None, weights=str(tmp_path / "birds.safetensors"))
    assert own.model.get_submodule("fc").out_features == 23
    assert not own.head_is_new
