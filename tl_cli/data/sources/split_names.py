"""Names that mean a part of a data set: one table of words, and how names are split into words. Opens nothing."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tl_cli.contract import SPLIT_NAMES, SplitName

Part = SplitName | Literal["unclear"]


def _folded(text: str) -> str:
    """Return text without case and without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _words_of(*lines: str) -> frozenset[str]:
    return frozenset(_folded(word) for line in lines for word in line.split())


# English, German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese, Korean.
_PART_WORDS: Mapping[Part, frozenset[str]] = {
    "train": _words_of(
        "train training trn trainval trainings entraînement apprentissage entrenamiento treino treinamento",
        "addestramento обучение обучающая тренировочная 训练 訓練 学習 훈련 학습",
    ),
    "val": _words_of(
        "val valid validation validate vld dev validierung validierungs validación validação validazione",
        "валидация валидационная 验证 驗證 検証 검증",
    ),
    "test": _words_of("test tests testing tst prueba pruebas teste testes тест тестовая 测试 測試 テスト 테스트"),
    # Validation or test images, depending on the data set; ``settled`` decides where that is clear.
    "unclear": _words_of("eval evaluation holdout heldout"),
}
_PLAIN = ("train", "training", "val", "valid", "validation", "test", "testing")
_PART_OF_WORD: Mapping[str, Part] = {word: part for part, words in _PART_WORDS.items() for word in words}
# Pieces of a data set that are counted: fold1, fold2.
_PIECE_WORDS = _words_of("fold split shard chunk batch part subset")
# Words without meaning beside the name of a part, apart from it (test_set) or joined to it (testset).
_FILLERS = _words_of(
    "set sets data dataset datasets ds image images img imgs picture pictures pic pics photo photos jpg jpeg png",
    "files folder of for the split splits subset class classes daten datensatz bilder satz données jeu ensemble de",
    "datos conjunto imágenes dados imagens dati insieme immagini di данные выборка",
    "集 数据 數據 数据集 數據集 图片 图像 圖片 データ データセット 画像 用 데이터 데이터셋 세트 이미지 용",
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A name, cut into words.

    Attributes:
        words: without accents, case, digits and fillers.
        part: that a word means; None where no word means one.
        rest: the other words.
        is_last: whether the name ends with the part, as ``seg_train`` does: a ``test_tube`` is a tube.
        numbered: whether it is a counted piece, as ``fold1`` is.
    """

    words: tuple[str, ...]
    part: Part | None
    rest: tuple[str, ...]
    is_last: bool
    numbered: bool


def _cut(name: str) -> _Cut:
    found = [word for each in _WORD.findall(_folded(_CAMEL.sub(" ", name))) for word in _unglued(each)]
    words = tuple(word for word in found if word not in _FILLERS)
    parts = [_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD]
    return _Cut(
        words=words,
        part=parts[0] if parts else None,
        rest=tuple(word for word in words if word not in _PART_OF_WORD),
        is_last=bool(parts) and words[-1] in _PART_OF_WORD,
        numbered=bool(_NUMBER.search(name)) and (bool(parts) or not _PIECE_WORDS.isdisjoint(found)),
    )


def _unglued(word: str) -> list[str]:
    """Return the part and the filler of which a word is made (``testset``), or the word."""
    for end in _FILLERS:
        if word.endswith(end) and word[: -len(end)] in _PART_OF_WORD:
            return [word[: -len(end)], end]
    return [word]


def meaning(name: str) -> Part | None:
    """Return the part that a name means if it means nothing else: ``Training set``, ``val2017``; not ``test_tube``."""
    cut = _cut(name)
    return None if cut.rest else cut.part


def part_named(name: str) -> SplitName | None:
    """Return what ``meaning`` does; None where that is unclear."""
    part = meaning(name)
    return None if part == "unclear" else part


def settled(named: Mapping[str, Part]) -> dict[str, Part]:
    """Return the parts by name, the unclear ones as what they must be: test beside train and val, val beside test."""
    missing = [part for part in SPLIT_NAMES if part not in named.values()]
    meant: Part = missing[0] if len(missing) == 1 and missing != ["train"] else "unclear"
    return {name: meant if part == "unclear" else part for name, part in named.items()}


def is_plain(name: str) -> bool:
    """Whether a name is one of the usual words for a part, so that it needs no explanation."""
    return name.casefold() in _PLAIN


def is_wrapper(name: str, part: Part) -> bool:
    """Whether a folder of this name inside a part adds nothing to it: ``train/images``, ``seg_train/seg_train``."""
    cut = _cut(name)
    return bool(_WORD.search(name)) and (not cut.words or (cut.part == part and cut.is_last))


def parts_among(names: Iterable[str]) -> dict[str, Part]:
    """Return the names that mean parts of one data set; empty where fewer than two different parts are named.

    ``train`` beside ``bus`` is a vehicle, and ``training_shoes`` beside ``test_tube`` are things: names belong together
    where they differ in the part only, or where each ends with a part.
    """
    cuts = {name: cut for name in names if (cut := _cut(name)).part}
    by_rest: dict[tuple[str, ...], dict[str, Part]] = {}
    for name, cut in cuts.items():
        if cut.part:
            by_rest.setdefault(cut.rest, {})[name] = cut.part
    together = {name: part for group in by_rest.values() if _differ(group) for name, part in group.items()}
    if together:
        return together
    ending = {name: cut.part for name, cut in cuts.items() if cut.part and cut.is_last}
    has_plain = any(not cuts[name].rest for name in ending)
    return ending if _differ(ending) and (has_plain or len(ending) == len(set(names))) else {}


def _differ(parts: Mapping[str, Part]) -> bool:
    return len(set(parts.values())) > 1


def looks_divided(names: Sequence[str]) -> list[str]:
    """Return the names that look like parts of one data set, or like counted pieces of one; empty where none do."""
    parts = parts_among(names)
    if parts:
        return list(parts)
    cuts = [_cut(name) for name in names]
    counted = [cut.words for cut in cuts if cut.numbered]
    others = [cut for cut in cuts if not (cut.numbered or (cut.part and cut.is_last))]
    return list(names) if len(counted) > 1 and len(set(counted)) == 1 and not others else []
