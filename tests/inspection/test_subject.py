from pathlib import Path

import pytest
import torch

from tl_cli.data.photographs import photographs
from tl_cli.errors import DataError
from tl_cli.inspection.subject import decoded_picture, subject_of_architecture
from tl_cli.models.zoo import registry


def test_photographs_come_with_pip_and_are_the_same_every_time() -> None:
    one, other = photographs(12, 64), photographs(12, 64)
    assert one.pixels.shape == (12, 3, 64, 64)
    assert torch.equal(one.pixels, other.pixels)
    assert set(one.labels.tolist()) == {-1}
    assert len({image.numpy().tobytes() for image in one.pixels}) == 12
    assert photographs(5, 64).pixels.equal(one.pixels[:5])
    # Pictures of something: neither flat nor noise.
    assert one.pixels.float().std((1, 2, 3)).min() > 10


def test_an_architecture_has_its_own_head_and_answers_what_is_in_a_photograph() -> None:
    subject = subject_of_architecture("efficientnet_lite0")
    images = subject.show()
    loader = images.batches(2)
    assert len(loader.images) == 2
    with torch.inference_mode():
        answers = torch.cat([subject.classifier.model(batch.inputs) for batch in loader.clean()]).argmax(1).tolist()
    # A temple in China, a flower.
    assert [subject.name_of(answer) for answer in answers] == ["bell cote", "daisy"]
    assert (images.is_judged, images.open_known, images.classes) == (False, None, ())
    seen = subject.prepared(loader.images.open(1))
    assert torch.equal(subject.inputs(seen[None])[0], next(iter(images.batches(2, 2).clean())).inputs[1])


def test_other_images_have_labels_that_say_nothing_of_the_answers(colours: Path) -> None:
    subject = subject_of_architecture("squeezenet1_1", weights="none", source=str(colours), input_size=64)
    images = subject.show()
    assert images.classes == ("blue", "green", "red")
    assert images.source == f"{colours}, test"
    assert {label for batch in images.batches(6).clean() for label in batch.labels.tolist()} == {-1}
    assert {label for batch in images.open(18, None).clean() for label in batch.labels.tolist()} == {0, 1, 2}
    assert images.open_known is not None
    assert len(images.open_known(10).images) == 10
    assert subject.classifier.preprocessing.crop == 64


def test_a_picture_is_decoded_or_refused(tmp_path: Path, colours: Path) -> None:
    how = registry.default_preprocessing("resnet18")
    assert decoded_picture(colours / "train" / "red" / "000.png", how).size == (32, 32)
    with pytest.raises(DataError, match="no such file"):
        decoded_picture(tmp_path / "nothing.jpg", how)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match="text.jpg"):
        decoded_picture(tmp_path / "text.jpg", how)


def test_as_many_outputs_as_the_weights_have(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert registry.create("efficientnet_lite0", None).model.get_submodule("classifier").out_features == 1000
    assert registry.create("resnet18", None, weights="none").model.get_submodule("fc").out_features == 10
    state = registry.create("resnet18", 23, weights="none").model.state_dict()
    save_file(state, tmp_path / "birds.safetensors")
    own = registry.create("resnet18", None, weights=str(tmp_path / "birds.safetensors"))
    assert own.model.get_submodule("fc").out_features == 23
    assert not own.head_is_new
