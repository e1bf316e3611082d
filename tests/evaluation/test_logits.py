import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tl_cli.compute.device import Autocasting, Machine
from tl_cli.data.batches import Batch
from tl_cli.errors import DataError
from tl_cli.evaluation.logits import compute_logits, load_logits, outputs, with_views
from tl_cli.models import freezing
from tl_cli.models.zoo import registry


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class _Slower(nn.Module):
    """A network that is slower for earlier batches and raises an error for negative numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        if float(inputs.min()) < 0:
            raise ValueError("negative")
        time.sleep(0.02 / (1 + float(inputs[0, 0])))
        return 2 * inputs


def _numbered(count: int) -> Iterator[Batch]:
    for number in range(count):
        yield Batch(torch.full((2, 1), float(number)), torch.tensor([number, number]))


def _images(*counts: int) -> list[Batch]:
    random = torch.Generator().manual_seed(3)
    return [Batch(torch.randn(count, 3, 32, 32, generator=random), torch.zeros(count).long()) for count in counts]


def test_batches_come_back_in_order() -> None:
    labelled = compute_logits(_Slower(), _numbered(9), at_once=3)
    assert labelled.labels.tolist() == [number for number in range(9) for _ in range(2)]
    assert labelled.logits[:, 0].tolist() == [2.0 * label for label in labelled.labels.tolist()]


@pytest.mark.parametrize("at_once", [1, 3])
def test_mirror_images_are_averaged_image_by_image(at_once: int) -> None:
    """The network returns the left column of an image, so that of the mirror image is the right one."""
    images = torch.tensor([[1.0, 2, 5], [0, 3, 4], [7, 1, 2]])[:, None, None]  # (3, 1, 1, 3)
    batches = [Batch(images[:2], torch.tensor([0, 1])), Batch(images[2:], torch.tensor([2]))]
    network = nn.Sequential(nn.Flatten(1), nn.Linear(3, 1, bias=False))
    network[1].weight.data = torch.tensor([[1.0, 0, 0]])
    found = compute_logits(network, with_views(batches, "flip"), at_once=at_once, tta="flip")
    assert found.logits.tolist() == [[3], [2], [4.5]]
    assert found.alone is not None
    assert found.alone.tolist() == [[1], [0], [7]]
    assert found.labels.tolist() == [0, 1, 2]
    assert found.scaled(2).alone.tolist() == [[0.5], [0], [3.5]]


@pytest.mark.slow
def test_concurrent_batches_have_the_same_logits() -> None:
    """The last batch is so small that its convolutions keep their BatchNorm, while another batch folds it."""
    classifier = registry.create("mobilenet_v3_small", 4, weights="none")
    freezing.freeze_backbone(classifier.model, classifier.head_modules)
    network = Autocasting(classifier.model, Machine(torch.device("cpu"), layout="channels-last"))
    batches = _images(24, 24, 1, 24, 1, 24, 1)
    alone = torch.cat([found for _, found in outputs(network, batches)])
    for _ in range(3):
        together = torch.cat([found for _, found in outputs(network, batches, at_once=2)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in classifier.model.modules())


@pytest.mark.parametrize("at_once", [1, 2])
def test_each_evaluation_uses_the_weights_of_its_time(at_once: int) -> None:
    classifier = registry.create("resnet18", 4, weights="none")
    network = Autocasting(classifier.model, Machine(torch.device("cpu"), layout="channels-last"))
    batches = _images(8, 8, 8)
    for _ in range(2):
        with torch.no_grad():
            for parameter in classifier.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        found = compute_logits(network, batches, at_once=at_once).logits
        with torch.inference_mode():
            expected = torch.cat([classifier.model(batch.inputs) for batch in batches])
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
        assert not any("forward" in vars(module) for module in classifier.model.modules())


def test_weights_are_converted_once_per_evaluation_and_the_network_is_free_between_batches() -> None:
    classifier = registry.create("mobilenet_v3_small", 4, weights="none")
    torch.nn.init.normal_(classifier.model.classifier[3].weight)
    network = Autocasting(classifier.model, Machine(torch.device("cpu"), layout="channels-last"))
    first, second = _images(24, 24)
    results = outputs(network, [first, second, first])
    _, before = next(results)
    assert not any("forward" in vars(module) for module in classifier.model.modules())
    with torch.no_grad():
        classifier.model.features[0][0].weight.mul_(2)
    # Weights must not change meanwhile: these are the converted ones.
    assert torch.equal([logits for _, logits in results][1], before)
    assert not torch.equal(next(outputs(network, [first]))[1], before)


def test_a_network_that_fails_restores_the_number_of_threads() -> None:
    batches = [*_numbered(2), Batch(torch.full((2, 1), -1.0), torch.zeros(2).long()), *_numbered(20)]
    with pytest.raises(ValueError, match="negative"):
        list(outputs(_Slower(), batches, at_once=2))
    assert torch.get_num_threads() == 2


def test_stopping_early_restores_the_number_of_threads() -> None:
    found = outputs(_Slower(), _numbered(50), at_once=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 2


def test_batches_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(_numbered(50)):
            read.append(number)
            yield batch

    found = outputs(_Slower(), batches(), at_once=2)
    next(found)
    assert len(read) <= 4
    list(found)
    assert len(read) == 50


@pytest.mark.parametrize(
    "edited",
    [
        {"labels": np.array([0, 9], np.int64)},
        {"labels": np.array([0, -1], np.int64)},
        {"labels": np.array([0.0, 1.0])},
        {"labels": np.array([0], np.int64)},
        {"logits": np.zeros((2, 2), np.float32)},
        {"logits": np.zeros(2, np.float32)},
        {"logits": np.zeros((2, 3), "U3")},
        {"ids": np.array(["one"])},
        {"classes": np.array("abc")},
    ],
)
def test_a_file_of_logits_with_inconsistent_arrays_is_refused(edited: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = {
        "logits": np.eye(2, 3, dtype=np.float32),
        "labels": np.array([0, 2], np.int64),
        "ids": np.array(["one", "two"]),
        "classes": np.array(["a", "b", "c"]),
    }
    path = tmp_path / "test_logits.npz"
    np.savez_compressed(path, **whole)
    kept = load_logits(path)
    assert (kept.ids, kept.classes, kept.labelled.labels.tolist()) == (("one", "two"), ("a", "b", "c"), [0, 2])
    np.savez_compressed(path, **{**whole, **edited})
    with pytest.raises(DataError, match=r"test_logits.npz does not contain the saved logits of a model"):
        load_logits(path)
