import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.inspection.networks import enliven
from tl_cli.data.batches import Batch
from tl_cli.evaluation.logits import Answers
from tl_cli.inspection.features import Features, explore, features_of, flat_map, neighbours, vote
from tl_cli.models.zoo import registry


def batch(count: int, size: int = 64) -> Batch:
    return Batch(torch.randn(count, 3, size, size), torch.arange(count))


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 512), ("squeezenet1_1", 512), ("timm/levit_128s", 384), ("alexnet", 4096)]
)
def test_features_are_what_the_head_gets(name: str, width: int) -> None:
    classifier = registry.create(name, 5, weights="none")
    enliven(classifier.model)
    size = 224 if "levit" in name else 64
    found = features_of(classifier, [batch(3, size), batch(2, size)])
    assert found.vectors.shape == (5, width)
    assert found.answers.logits.shape == (5, 5)
    assert found.answers.labels.tolist() == [0, 1, 2, 0, 1]
    if name == "resnet18":
        assert torch.allclose(classifier.model.fc(found.vectors), found.answers.logits, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in classifier.model.modules())


def clouds(count: int, seed: int) -> Features:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    middles = torch.eye(3, 16)[labels] * 8
    vectors = middles + torch.randn(count, 16, generator=random)
    # A head that always says the first class.
    return Features(vectors, Answers(torch.eye(3)[torch.zeros(count, dtype=torch.long)], labels))


def test_neighbours_vote_as_scikit_learn_lets_them_and_are_put_beside_the_head() -> None:
    known, asked = clouds(300, 0), clouds(60, 1)
    voters = KNeighborsClassifier(20, metric="cosine").fit(known.vectors, known.answers.labels)
    assert np.array_equal(vote(known, asked, 20), voters.predict(asked.vectors.numpy()))
    found = explore(known, asked, is_judged=True, most_on_map=50)
    assert found.by_head is not None
    assert (found.by_head.value, found.by_neighbours.value, found.neighbours) == (pytest.approx(1 / 3), 1.0, 20)
    assert found.agree == pytest.approx(1 / 3)
    assert found.places.shape == (50, 2)
    assert found.labels.tolist() == [place % 3 for place in range(50)]
    unknown = explore(known, asked, is_judged=False, most_on_map=50)
    assert (unknown.by_head, unknown.agree, unknown.by_neighbours) == (None, None, found.by_neighbours)


def test_few_images_have_few_neighbours() -> None:
    assert [neighbours(*each) for each in ((5000, 10), (60, 10), (10, 10), (3, 10), (400, 10))] == [20, 3, 1, 1, 20]


def test_the_map_keeps_groups_apart_and_is_the_same_every_time() -> None:
    asked = clouds(90, 2)
    places = flat_map(asked)
    assert np.array_equal(places, flat_map(asked))
    middles = np.array([places[asked.answers.labels.numpy() == label].mean(0) for label in range(3)])
    spread = max(places[asked.answers.labels.numpy() == label].std(0).max() for label in range(3))
    apart = min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert apart > 3 * spread


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_map_of_very_few_images_is_drawn_all_the_same(count: int) -> None:
    places = flat_map(clouds(count, 3))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
