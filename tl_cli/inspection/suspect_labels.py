"""Which labels may be wrong: those that images held out of the learning contradict with confidence."""

from dataclasses import dataclass

import numpy as np

_FOLDS = 5
_COMPONENTS = 256
# C weighs the sum over images, so it falls with their number. On 3,000 CIFAR-10 images with 5% wrong labels a weak
# classifier doubts best: precision 35% at a recall of 64% with 6, 22% at 72% with 250.
_STRENGTH = 6.0
_FEWEST = 2  # images of a class, to be in two folds


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label is doubted.

    Attributes:
        index: of the image.
        given: its label.
        likely: the class that it seems to be.
        confidence: probability of ``likely``, from images that it was not among.
        doubt: that less the probability of ``given``: the larger the surer.
    """

    index: int
    given: int
    likely: int
    confidence: float
    doubt: float


def are_comparable(labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether an image's class has another one, from which it could be told what the class is."""
    return np.asarray(np.bincount(labels)[labels] >= _FEWEST) if len(labels) else np.zeros(0, dtype=bool)


def suspects(vectors: np.ndarray, labels: np.ndarray, seed: int = 0) -> list[Suspect]:
    """Return the images whose labels are doubted, the surest first.

    A linear classifier on the vectors says what each image is, trained on the four fifths of which it is none.
    Confident learning (Northcutt, Jiang & Chuang 2021): the label i of an image is doubted where some other class j has
    a probability of at least the mean that images labelled j have of it, and j is what is said.

    Args:
        vectors: (N, D) float, of images as a pretrained network sees them.
        labels: (N,) int64, as given, of two classes or more, each of which ``are_comparable``.
        seed: of the folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, places = np.unique(labels, return_inverse=True)
    folds = StratifiedKFold(min(_FOLDS, int(np.bincount(places).min())), shuffle=True, random_state=seed)
    learners = len(labels) - len(labels) // folds.n_splits
    components = min(_COMPONENTS, vectors.shape[1], learners - 1)
    weak = LogisticRegression(C=_STRENGTH / max(1, learners), max_iter=300)
    model = make_pipeline(StandardScaler(), PCA(components, random_state=seed), weak)
    said = cross_val_predict(model, vectors, places, cv=folds, method="predict_proba")
    own = said[np.arange(len(places)), places]
    usual = np.array([said[places == place, place].mean() for place in range(len(classes))])
    likely = np.where(said >= usual, said, -1.0).argmax(1)
    doubted = np.flatnonzero((likely != places) & (said.max(1) >= usual[likely]) & (said.argmax(1) == likely))
    found = [
        Suspect(
            int(index),
            int(classes[places[index]]),
            int(classes[likely[index]]),
            float(said[index, likely[index]]),
            float(said[index, likely[index]] - own[index]),
        )
        for index in doubted
    ]
    return sorted(found, key=lambda suspect: -suspect.doubt)
