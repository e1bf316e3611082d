"""The features that reach the head of a model: how well nearest neighbours classify them, and a map of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.intervals import Accuracy, wilson
from tl_cli.evaluation.logits import Counted, LabelledLogits, check_finite
from tl_cli.evaluation.task import SINGLE_LABEL, Task
from tl_cli.models.classifier import Classifier

# As in the evaluation of DINO (Caron et al. 2021), where 20 was the best or close to it.
NEIGHBOURS = 20
_FEWEST_FOR_TSNE = 5


@dataclass(frozen=True, slots=True)
class Features:
    """The input of the head for each image, and the logits that it returns.

    Attributes:
        vectors: (N, D) float32, on the CPU.
        labelled: logits and labels.
    """

    vectors: Tensor
    labelled: LabelledLogits


def features_of(classifier: Classifier, batches: Iterable[Batch], counted: Counted = lambda done: None) -> Features:
    """Return the features that reach the head for each image. The model is left in eval mode.

    Maps and sequences of tokens are averaged over positions, as global pooling does. For a head in several parts it is
    the input of the first.

    Args:
        counted: called with the number of images done.

    Raises:
        UsageError: the head's input has no row per image.
        WeightsError: the model returns NaN or infinity.
    """
    head_inputs: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        head_inputs.extend(each for each in inputs[:1] if isinstance(each, Tensor))

    vectors, logits, labels, done = [], [], [], 0
    classifier.model.eval()
    with classifier.head_modules[0].register_forward_pre_hook(record), torch.inference_mode():
        for batch in batches:
            head_inputs.clear()
            logits.append(classifier.model(batch.inputs).float().cpu())
            check_finite(logits[-1])
            labels.append(batch.labels.cpu())
            if not head_inputs or len(head_inputs[0]) != len(batch.labels):
                raise UsageError(f"the input of {classifier.name}'s head has no row per image")
            vectors.append(_pooled(head_inputs[0]).float().cpu())
            done += len(batch.labels)
            counted(done)
    return Features(torch.cat(vectors), LabelledLogits(torch.cat(logits), torch.cat(labels)))


def _pooled(values: Tensor) -> Tensor:
    if values.dim() == 4:
        return values.mean((2, 3))
    return values.mean(1) if values.dim() == 3 else values.flatten(1)


def neighbour_count(images: int, classes: int) -> int:
    """Return k for k-nearest neighbours: 20, or half of a class's training images where those are fewer than 40."""
    return max(1, min(NEIGHBOURS, images // (2 * max(1, classes))))


def knn_predictions(training: Features, query: Features, k: int) -> np.ndarray:
    """Return the majority class among the k nearest training images by cosine distance, (N,), for each query image."""
    classifier = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute", n_jobs=1)
    classifier.fit(training.vectors.numpy(), training.labelled.labels.numpy())
    predicted: np.ndarray = classifier.predict(query.vectors.numpy())
    return predicted


def tsne_map(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a point in the plane per image, (N, 2): t-SNE (van der Maaten & Hinton 2008) of up to 50 components.

    Distances between far groups and the sizes of groups mean nothing in it. Fewer than five images are placed by their
    first two principal components.

    Args:
        vectors: (N, D).
    """
    if len(vectors) < _FEWEST_FOR_TSNE or vectors.shape[1] < 2:
        flat = np.zeros((len(vectors), 2), np.float32)
        if len(vectors) > 2 and vectors.shape[1] > 1:
            flat[:, :2] = PCA(2, random_state=seed).fit_transform(vectors)
        return flat
    reduced = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    points: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    return points


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """How well the features classify without the head, and a map of them.

    Attributes:
        by_head: accuracy of the model's predictions; None where the labels are not its classes.
        by_neighbours: accuracy of k-nearest neighbours.
        neighbours: k.
        known: training images among which neighbours are searched.
        agree: share of the images on which head and neighbours predict the same class; None as for ``by_head``.
        points: (N, 2), for a map.
        labels: (N,) int64, of the images on the map.
    """

    by_head: Accuracy | None
    by_neighbours: Accuracy
    neighbours: int
    known: int
    agree: float | None
    points: np.ndarray
    labels: np.ndarray


def explore(
    training: Features, query: Features, *, labels_fit: bool, most_on_map: int, task: Task = SINGLE_LABEL
) -> Neighbourhood:
    """Return the accuracy of nearest neighbours beside that of the head, and a map of the images.

    Args:
        training: features of training images.
        query: features of the images to classify.
        labels_fit: whether the labels are the model's own classes.
        most_on_map: only the first so many images are on the map.
    """
    logits, labels = query.labelled.logits, query.labelled.labels
    k = neighbour_count(len(training.vectors), len(np.unique(training.labelled.labels.numpy())))
    by_neighbours = knn_predictions(training, query, k)
    agreeing = task.is_correct(logits, torch.from_numpy(by_neighbours))
    return Neighbourhood(
        wilson(int(task.is_correct(logits, labels).sum()), len(labels)) if labels_fit else None,
        wilson(int((by_neighbours == labels.numpy()).sum()), len(labels)),
        k,
        len(training.vectors),
        float(agreeing.double().mean()) if labels_fit else None,
        tsne_map(query.vectors[:most_on_map].numpy()),
        labels[:most_on_map].numpy(),
    )
