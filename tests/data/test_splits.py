import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_cli.data import splits
from tl_cli.errors import DataError

label_lists = st.lists(st.integers(1, 40), min_size=2, max_size=8).map(
    lambda counts: np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
)


@given(label_lists.filter(lambda labels: np.bincount(labels).min() > 1), st.floats(0.01, 0.9), st.integers(0, 2**63))
def test_a_split_is_disjoint_complete_and_stratified(labels: np.ndarray, fraction: float, seed: int) -> None:
    kept, out = splits.hold_out(labels, fraction, seed)
    assert sorted([*kept, *out]) == list(range(len(labels)))
    counts, held = np.bincount(labels), np.bincount(labels[out])
    assert (held >= 1).all()
    assert (held < counts).all()
    assert (abs(held - counts * fraction) <= 1).all()


@given(label_lists, st.integers(0, 2**63), st.data())
def test_a_subset_is_stratified_and_has_every_class(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    classes = labels.max() + 1
    count = data.draw(st.integers(classes, len(labels)))
    chosen = splits.subset(labels, count, seed)
    assert len(set(chosen.tolist())) == count
    got = np.bincount(labels[chosen], minlength=classes)
    assert (got >= 1).all()
    share = np.bincount(labels) * count / len(labels)
    # A class whose share is below one may get an image; classes interleave at the middles of their images.
    assert (got <= share + 1.5).all()
    assert (got >= np.floor(share) - (share < 1).sum() - 1).all()


def test_splits_equal_those_of_earlier_versions() -> None:
    labels = np.arange(40) % 4
    _, out = splits.hold_out(labels, 0.1, 0)
    assert out.tolist() == splits.hold_out(labels, 0.1, 0)[1].tolist() == [23, 32, 34, 37]
    assert out.tolist() != splits.hold_out(labels, 0.1, 1)[1].tolist()


def test_no_image_of_single_image_or_whole_classes_is_held_out() -> None:
    labels = np.array([0] * 5 + [1] + [2] * 2 + [3] * 4)
    kept, out = splits.hold_out(labels, 0.3, 0)
    assert np.bincount(labels[out], minlength=4).tolist() == [2, 0, 1, 1]
    kept, out = splits.hold_out(labels, 0.3, 0, np.array([0, 2]))
    assert np.bincount(labels[out], minlength=4).tolist() == [0, 0, 0, 1]
    assert sorted([*kept, *out]) == list(range(12))


@given(label_lists, st.integers(0, 2**63), st.integers(1, 4), st.data())
def test_a_subset_keeps_some_of_each_class(labels: np.ndarray, seed: int, least: int, data: st.DataObject) -> None:
    counts = np.bincount(labels)
    needed = sum(min(least, count) for count in counts.tolist())
    count = data.draw(st.integers(needed, len(labels)))
    chosen = splits.subset(labels, count, seed, least=least)
    assert len(set(chosen.tolist())) == count
    got = np.bincount(labels[chosen], minlength=len(counts))
    assert (got >= np.minimum(counts, least)).all()
    # If the shares are large enough, the subset equals that of older runs.
    if len(counts) <= count and (np.bincount(labels[splits.subset(labels, count, seed)]) >= least).all():
        assert chosen.tolist() == splits.subset(labels, count, seed).tolist()
    with pytest.raises(DataError, match=f"--most {needed - 1} is too few for {len(counts)} classes.*--most {needed}$"):
        splits.subset(labels, needed - 1, seed, least=least, flag="--most")


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match="--limit 2"):
        splits.subset(np.arange(3), 2, 0)
