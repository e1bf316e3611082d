"""What reaches the head of a network: how well neighbours in that space share a class, and a map of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_cli.data.batches import Batch
from tl_cli.errors import UsageError
from tl_cli.evaluation.intervals import Accuracy, wilson
from tl_cli.evaluation.logits import Answers, Counted, check_finite
from tl_cli.models.zoo.registry import Classifier

# As in the evaluation of DINO (Caron et al. 2021), which found 20 to be best or near it.
NEIGHBOURS = 20
_FEWEST_ON_A_MAP = 5


@dataclass(frozen=True, slots=True)
class Features:
    """What reaches the head, beside what it answers.

    Attributes:
        vectors: (N, D) float32, on the CPU.
        answers: logits and labels.
    """

    vectors: Tensor
    answers: Answers


def features_of(classifier: Classifier, batches: Iterable[Batch], counted: Counted = lambda done: None) -> Features:
    """Return what reaches the head for each image. The model is left in eval mode.

    Maps and sequences of tokens are averaged over their places, as global pooling does. Of a head in several parts it
    is what reaches the first.

    Args:
        counted: told how many images are done.

    Raises:
        UsageError: what reaches the head has no row for each image.
        WeightsError: the model answers with what is no number.
    """
    reached: list[Tensor] = []
    vectors, logits, labels, done = [], [], [], 0
    head = classifier.head_modules[0]
    handle = head.register_forward_pre_hook(lambda module, inputs: _note(reached, inputs))
    classifier.model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                reached.clear()
                logits.append(classifier.model(batch.inputs).float().cpu())
                check_finite(logits[-1])
                labels.append(batch.labels.cpu())
                if not reached or len(reached[0]) != len(batch.labels):
                    raise UsageError(f"what reaches the head of {classifier.name} has no row for each image")
                vectors.append(_pooled(reached[0]).float().cpu())
                done += len(batch.labels)
                counted(done)
    finally:
        handle.remove()
    return Features(torch.cat(vectors), Answers(torch.cat(logits), torch.cat(labels)))


def _note(reached: list[Tensor], inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor):
        reached.append(inputs[0])


def _pooled(values: Tensor) -> Tensor:
    if values.dim() == 4:
        return values.mean((2, 3))
    return values.mean(1) if values.dim() == 3 else values.flatten(1)


def neighbours(known: int, classes: int) -> int:
    """Return how many neighbours vote: 20, or half of the images that a class has where these are few."""
    return max(1, min(NEIGHBOURS, known // (2 * max(1, classes))))


def vote(known: Features, asked: Features, count: int) -> np.ndarray:
    """Return the class that most of the nearest known images have, by cosine, for each image that is asked for, (N,).

    Args:
        count: how many neighbours vote.
    """
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(n_neighbors=count, metric="cosine", algorithm="brute", n_jobs=1)
    voters.fit(known.vectors.numpy(), known.answers.labels.numpy())
    said: np.ndarray = voters.predict(asked.vectors.numpy())
    return said


def flat_map(features: Features, seed: int = 0) -> np.ndarray:
    """Return a place in the plane for each image, (N, 2): t-SNE (van der Maaten & Hinton 2008) of its first components.

    Distances between far groups, and the sizes of groups, say nothing in it. Of very few images it is the first two
    principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = features.vectors.numpy()
    if len(vectors) < _FEWEST_ON_A_MAP or vectors.shape[1] < 2:
        flat = np.zeros((len(vectors), 2), np.float32)
        if len(vectors) > 2 and vectors.shape[1] > 1:
            flat[:, :2] = PCA(2, random_state=seed).fit_transform(vectors)
        return flat
    few = min(50, *vectors.shape)
    reduced = PCA(few, random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    places: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    return places


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What the features are worth without the head, and where they lie.

    Attributes:
        by_head: accuracy of the network's own answers; None where the labels are not its classes.
        by_neighbours: of the votes of the nearest training images.
        neighbours: how many vote.
        known: training images that may vote.
        agree: share of the images on which head and neighbours say the same; None as ``by_head``.
        places: (N, 2), for a map.
        labels: (N,) int64, what the images are.
    """

    by_head: Accuracy | None
    by_neighbours: Accuracy
    neighbours: int
    known: int
    agree: float | None
    places: np.ndarray
    labels: np.ndarray


def explore(known: Features, asked: Features, *, is_judged: bool, most_on_map: int) -> Neighbourhood:
    """Return what neighbours say of each image that is asked for, beside the head, and a map of the images.

    Args:
        known: of the training images.
        is_judged: whether the labels are the network's own classes.
        most_on_map: of more images the first so many are on the map.
    """
    labels = asked.answers.labels.numpy()
    count = neighbours(len(known.vectors), len(np.unique(known.answers.labels.numpy())))
    said, answered = vote(known, asked, count), asked.answers.logits.argmax(1).numpy()
    shown = Features(asked.vectors[:most_on_map], asked.answers)
    return Neighbourhood(
        wilson(int((answered == labels).sum()), len(labels)) if is_judged else None,
        wilson(int((said == labels).sum()), len(labels)),
        count,
        len(known.vectors),
        float((said == answered).mean()) if is_judged else None,
        flat_map(shown),
        labels[:most_on_map],
    )
