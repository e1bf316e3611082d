import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.support.networks import randomise_constants
from tl_cli.data.batches import Batch
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.inspection.features import Features, explore, features_of, knn_predictions, neighbour_count, tsne_map
from tl_cli.models.zoo import registry


def batch(count: int, size: int = 64) -> Batch:
    return Batch(torch.randn(count, 3, size, size), torch.arange(count))


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 512), ("squeezenet1_1", 512), ("timm/levit_128s", 384), ("alexnet", 4096)]
)
def test_features_are_the_input_of_the_head(name: str, width: int) -> None:
    classifier = registry.create(name, 5, weights="none")
    randomise_constants(classifier.model)
    size = 224 if "levit" in name else 64
    features = features_of(classifier, [batch(3, size), batch(2, size)])
    assert features.vectors.shape == (5, width)
    assert features.labelled.logits.shape == (5, 5)
    assert features.labelled.labels.tolist() == [0, 1, 2, 0, 1]
    if name == "resnet18":
        assert torch.allclose(classifier.model.fc(features.vectors), features.labelled.logits, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in classifier.model.modules())


def clouds(count: int, seed: int) -> Features:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    middles = torch.eye(3, 16)[labels] * 8
    vectors = middles + torch.randn(count, 16, generator=random)
    # A head that always predicts the first class.
    return Features(vectors, LabelledLogits(torch.eye(3)[torch.zeros(count, dtype=torch.long)], labels))


def test_neighbours_predict_as_scikit_learn_and_are_compared_with_the_head() -> None:
    training, query = clouds(300, 0), clouds(60, 1)
    reference = KNeighborsClassifier(20, metric="cosine").fit(training.vectors, training.labelled.labels)
    assert np.array_equal(knn_predictions(training, query, 20), reference.predict(query.vectors.numpy()))
    neighbourhood = explore(training, query, labels_fit=True, most_on_map=50)
    assert neighbourhood.by_head is not None
    assert (neighbourhood.by_head.value, neighbourhood.by_neighbours.value, neighbourhood.neighbours) == (
        pytest.approx(1 / 3),
        1.0,
        20,
    )
    assert neighbourhood.agree == pytest.approx(1 / 3)
    assert neighbourhood.points.shape == (50, 2)
    assert neighbourhood.labels.tolist() == [index % 3 for index in range(50)]
    unknown = explore(training, query, labels_fit=False, most_on_map=50)
    assert (unknown.by_head, unknown.agree, unknown.by_neighbours) == (None, None, neighbourhood.by_neighbours)


def test_few_images_have_few_neighbours() -> None:
    assert [neighbour_count(*each) for each in ((5000, 10), (60, 10), (10, 10), (3, 10), (400, 10))] == [
        20,
        3,
        1,
        1,
        20,
    ]


def test_the_map_separates_groups_and_is_reproducible() -> None:
    query = clouds(90, 2)
    vectors = query.vectors.numpy()
    points = tsne_map(vectors)
    assert np.array_equal(points, tsne_map(vectors))
    centres = np.array([points[query.labelled.labels.numpy() == label].mean(0) for label in range(3)])
    spread = max(points[query.labelled.labels.numpy() == label].std(0).max() for label in range(3))
    apart = min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert apart > 3 * spread


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_very_few_images_have_a_map(count: int) -> None:
    points = tsne_map(clouds(count, 3).vectors.numpy())
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
