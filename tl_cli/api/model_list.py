"""Lists the architectures that can be fine-tuned, and downloads their weights. A cached list needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tl_cli.api.observer import Observer
from tl_cli.errors import DownloadError, UsageError
from tl_cli.io.download import check_reachable
from tl_cli.models.list.completion import UNSUPPORTED, registered
from tl_cli.models.list.count_cache import CountCache
from tl_cli.models.list.rows import ModelFilter, Row, SortKey, has_any, list_models


@dataclass(frozen=True, slots=True)
class ModelList:
    """The listed architectures.

    Attributes:
        rows: in the requested order.
        total: number of architectures that pass the filters.
        more_in_timm: number of timm's architectures where timm was not searched; else 0.
    """

    rows: tuple[Row, ...]
    total: int
    more_in_timm: int = 0

    def to_list(self) -> list[dict[str, object]]:
        """Return plain JSON types, one object per architecture."""
        return [
            {
                "name": row.name,
                "library": row.library,
                "family": row.family.title,
                "year": row.family.year,
                "parameters": row.parameters,
                "multiply_adds": row.multiply_adds,
                "imagenet_top1": row.top1,
                "input_size": row.input_size,
                "weights_on_disk": row.on_disk,
            }
            for row in self.rows
        ]


@dataclass(frozen=True, slots=True)
class PulledModels:
    """The architectures whose weights are now on this machine, and why others failed."""

    names: tuple[str, ...]
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {"pulled": list(self.names), "failures": list(self.failures)}


def list_architectures(
    request: ModelFilter,
    observer: Observer,
    *,
    sort: SortKey = "family",
    reverse: bool = False,
    limit: int | None = None,
) -> ModelList:
    """Return the architectures that pass the filter, with their size and cost.

    Args:
        observer: gets the progress of counting.
        limit: maximum number of rows; None is all.

    Raises:
        UsageError: none passes the filter; the message proposes near names.
    """
    with CountCache() as cache:
        counted = partial(observer.progress, "counting")
        rows, total = list_models(request, sort, reverse=reverse, limit=limit, cache=cache, counted=counted)
    if not rows:
        raise UsageError(_explain_no_match(request))
    more = 0 if "timm" in request.libraries else len(set(registered("timm")) - set(UNSUPPORTED))
    return ModelList(tuple(rows), total, more)


def pull_weights(names: Sequence[str], observer: Observer | None = None) -> PulledModels:
    """Download published weights; a failure does not stop the next download.

    Args:
        observer: gets the progress of the downloads.

    Raises:
        UnknownModelError: an architecture does not exist; nothing was downloaded.
        WeightsError: an architecture has no published weights.
    """
    observer = observer or Observer()
    from tl_cli.models.zoo import registry  # imports torch, which listing does not need

    for name in names:
        registry.about(name)  # raises for an unknown name, before the first download
    failures = {}
    for name in names:
        try:
            check_reachable([registry.missing_weights(name)])
            registry.fetch_weights(name, observer.progress)
        except DownloadError as error:
            failures[name] = str(error)
    return PulledModels(tuple(name for name in names if name not in failures), tuple(failures.values()))


def _explain_no_match(request: ModelFilter) -> str:
    """Return why no model passes: because of the pattern, or of the other filters."""
    where = f" of {request.libraries[0]}" if len(request.libraries) == 1 else ""
    pattern = request.pattern
    if pattern is None or set(pattern) & set("*?[") or has_any(ModelFilter(pattern, request.libraries)):
        return f"no model{where} passes the pattern and the filters"
    from tl_cli.models.zoo import registry  # imports torch, which listing does not need

    return f"no model{where} has {pattern!r} in its name or family.{registry.nearest(pattern)}"
