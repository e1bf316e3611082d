import numpy as np

from tl_cli.inspection.suspect_labels import are_comparable, suspects


def test_classes_of_one_image_are_not_comparable() -> None:
    assert are_comparable(np.array([3, 0, 3, 1, 0])).tolist() == [True, True, True, False, True]
    assert are_comparable(np.zeros(0, dtype=np.int64)).tolist() == []


def test_planted_wrong_labels_are_the_suspects() -> None:
    random = np.random.default_rng(0)
    true = np.repeat([2, 5, 7], 40)
    centres = {2: (6, 0, 0, 0), 5: (0, 6, 0, 0), 7: (0, 0, 6, 0)}
    vectors = np.array([centres[label] for label in true]) + random.normal(size=(120, 4))
    given = true.copy()
    given[[3, 50, 100]] = [5, 7, 2]
    # Typical images of their true classes, farther from the others than most.
    vectors[[3, 50, 100]] *= 2
    suspected = suspects(vectors, given)
    assert {each.index for each in suspected} == {3, 50, 100}
    for each in suspected:
        assert (each.given, each.likely) == (given[each.index], true[each.index])
        assert 0 < each.doubt <= each.confidence <= 1
    assert [each.doubt for each in suspected] == sorted((each.doubt for each in suspected), reverse=True)
    assert suspects(vectors, true) == []
