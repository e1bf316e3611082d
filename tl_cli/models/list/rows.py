"""The rows of a list of models: what each library publishes, what is counted, and the family's history."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from tl_cli.models.list.count_cache import CountCache
from tl_cli.models.list.families import Family, family_of
from tl_cli.models.list.published import architectures

SortKey = Literal["family", "name", "year", "params", "flops", "top1", "input"]
# Called with (rows counted, total rows).
Counted = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture.

    Attributes:
        input_size: side of the input in pixels that the weights were made for.
        top1: ImageNet-1k accuracy of the best weights as the library states it, a fraction; None: it states none.
        on_disk: whether these weights are on this machine; None: none are published.
        parameters: with ImageNet's 1,000 classes; None: not counted.
        multiply_adds: per image; None: not counted.
    """

    name: str
    library: str
    family: Family
    input_size: int
    top1: float | None
    on_disk: bool | None
    parameters: int | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Which rows are listed.

    Attributes:
        pattern: part of a name or of a family's title, or a glob of names; None is all.
        libraries: to list.
        max_parameters: maximum.
        max_multiply_adds: maximum per image.
        min_top1: a fraction; an architecture without a stated accuracy does not pass.
        on_disk: only those whose weights are on this machine.
    """

    pattern: str | None = None
    libraries: tuple[str, ...] = ("torchvision", "bundled", "timm")
    max_parameters: float | None = None
    max_multiply_adds: float | None = None
    min_top1: float | None = None
    on_disk: bool = False


def list_models(
    request: ModelFilter, sort: SortKey, *, reverse: bool, limit: int | None, cache: CountCache, counted: Counted
) -> tuple[list[Row], int]:
    """Return the rows to show, counted, and the total number of rows.

    Only what is shown is counted, unless the order or a filter needs the counts of all.

    Args:
        limit: maximum number of rows; None is all.
        counted: called with the progress of counting.
    """
    rows = [row for library in request.libraries for row in _rows(library) if _passes(row, request)]
    by_cost = sort in ("params", "flops") or request.max_parameters is not None or request.max_multiply_adds is not None
    if by_cost:
        rows = [row for row in _counted(rows, cache, counted) if _is_affordable(row, request)]
    rows = _sorted(rows, sort, reverse=reverse)
    shown = rows if limit is None else rows[:limit]
    return (shown if by_cost else _counted(shown, cache, counted)), len(rows)


def has_any(request: ModelFilter) -> bool:
    """Whether anything passes the filter."""
    return any(_passes(row, request) for library in request.libraries for row in _rows(library))


def _rows(library: str) -> Iterable[Row]:
    for each in architectures(library):
        family = family_of(each.plain_name, each.module)
        yield Row(each.name, library, family, each.input_size, each.top1, each.on_disk)


def _passes(row: Row, request: ModelFilter) -> bool:
    if request.pattern is not None and not _matches(row, request.pattern.lower()):
        return False
    if request.on_disk and not row.on_disk:
        return False
    return request.min_top1 is None or (row.top1 is not None and row.top1 >= request.min_top1)


def _matches(row: Row, pattern: str) -> bool:
    if set(pattern) & set("*?["):
        return fnmatchcase(row.name, pattern)
    return pattern in row.name or pattern in row.family.title.lower()


def _is_affordable(row: Row, request: ModelFilter) -> bool:
    for value, bound in ((row.parameters, request.max_parameters), (row.multiply_adds, request.max_multiply_adds)):
        if bound is not None and (value is None or value > bound):
            return False
    return True


def _counted(rows: Sequence[Row], cache: CountCache, counted: Counted) -> list[Row]:
    result = []
    for done, row in enumerate(rows):
        counted(done, len(rows))
        counts = cache.count(row.name, "torchvision" if row.library == "torchvision" else "timm", row.input_size)
        cost = (counts.parameters, counts.multiply_adds) if counts else (None, None)
        result.append(replace(row, parameters=cost[0], multiply_adds=cost[1]))
    return result


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts resnet18 before resnet101."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sorted(rows: list[Row], sort: SortKey, *, reverse: bool) -> list[Row]:
    """Sort; rows without a value come last in either direction."""
    keys: dict[SortKey, Callable[[Row], object]] = {
        "family": lambda row: (row.family.year or 9999, row.family.title, row.library, _natural(row.name)),
        "year": lambda row: row.family.year,
        "name": lambda row: _natural(row.name),
        "params": lambda row: row.parameters,
        "flops": lambda row: row.multiply_adds,
        "top1": lambda row: row.top1,
        "input": lambda row: row.input_size,
    }
    key = keys[sort]
    known = [row for row in rows if key(row) is not None]
    unknown = [row for row in rows if key(row) is None]
    return sorted(known, key=key, reverse=reverse) + unknown  # type: ignore[arg-type]
