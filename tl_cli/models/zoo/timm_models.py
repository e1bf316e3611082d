"""timm's architectures as ``timm/NAME[.TAG]``."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from logging.handlers import BufferingHandler
from math import floor
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from tl_cli.contract import Preprocessing, WeightsTag, problems_in
from tl_cli.errors import UnknownModelError, UsageError, WeightsError, suggest
from tl_cli.io.download import Missing, Progress, digest
from tl_cli.models.list.completion import PREFIX, UNSUPPORTED
from tl_cli.models.list.published import Architecture
from tl_cli.models.zoo import hub
from tl_cli.models.zoo.source import Source
from tl_cli.models.zoo.weights import Pretrained, class_names, fetch_file, missing_file, read, url_path

_TAG_PREFIX = "timm:"
# Input sides that are tried, smallest first, to find the smallest that an architecture accepts.
_TRIED_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)


class TimmSource(Source):
    """Every image classifier of timm."""

    def names(self) -> list[str]:
        """Return timm's architectures, without tags."""
        return [PREFIX + name for name in _timm().list_models() if name not in UNSUPPORTED]

    def has(self, name: str) -> bool:
        """Whether timm has the architecture under this name; its deprecated names are only suggestions."""
        return name.startswith(PREFIX) and _plain(name) in _listed()

    def architecture(self, name: str) -> str:
        """Return the name without its tag."""
        return PREFIX + _plain(name)

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        """Return the architecture with random weights."""
        _check_supported(name)
        extra: dict[str, object] = dict(options)
        if drop_path is not None:
            extra["drop_path_rate"] = drop_path
        try:
            model: nn.Module = _timm().create_model(_tagged(name), pretrained=False, num_classes=num_classes, **extra)
        except TypeError as error:
            refused = "--drop-path has no effect" if drop_path is not None else f"it takes no {', '.join(options)}"
            raise UsageError(f"{name} cannot be built: {refused} ({error})") from error
        if drop_path and not any(getattr(module, "drop_prob", None) for module in model.modules()):
            raise UsageError(f"{name} has no stochastic depth: --drop-path has no effect")
        return model

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return timm's weights from the hub's cache, fetched on first use.

        Args:
            spec: a tag; ``default`` is the name's own tag, or timm's first.

        Raises:
            WeightsError: there are none, or none of that tag; the message lists the tags.
            DownloadError: they are not on this machine and cannot be fetched.
        """
        tagged = _with_tag(name, spec)
        cfg = _cfg(tagged)
        full_name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
        path, sha256 = _download(tagged, progress)
        return Pretrained(
            state=_read(path, tagged),
            tag=WeightsTag(name=_TAG_PREFIX + full_name, sha256=sha256),
            preprocessing=_preprocessing(cfg.to_dict(), tagged),
            outputs=cfg.num_classes,
        )

    def missing(self, name: str, spec: str) -> Missing | None:
        """Return the file, unless it is in the hub's cache or TORCH_HOME.

        Raises:
            WeightsError: there are none, or none of that tag.
        """
        tagged = _with_tag(name, spec)
        cfg = _cfg(tagged)
        if cfg.hf_hub_id:
            return hub.missing(cfg.hf_hub_id, _files_of(cfg))
        if not cfg.url:
            raise _without_weights(tagged)
        return missing_file(cfg.url)

    def fetch(self, name: str, progress: Progress) -> None:
        """Bring the weights into the hub's cache."""
        _download(_with_tag(name, "default"), progress)

    def adapt(self, name: str, model: nn.Module, weights: Pretrained, options: dict[str, int]) -> Mapping[str, Tensor]:
        """Return the weights as timm's own loader converts them: old names renamed, position embeddings resampled."""
        is_published = weights.tag.name.startswith(_TAG_PREFIX)
        tagged = weights.tag.name.removeprefix(_TAG_PREFIX) if is_published else _plain(name)
        return _loaded_by_timm(tagged, weights, options)

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        """Return the preprocessing in timm's configuration of the weights."""
        tagged = _with_tag(name, spec)
        return _preprocessing(_cfg(tagged).to_dict(), tagged)

    def published(self, name: str) -> list[str]:
        """Return the tags of an architecture's weights."""
        return [full.partition(".")[2] for full in _timm().list_pretrained(f"{_plain(name)}.*")]

    def about(self, name: str) -> Architecture:
        """Return the facts in timm's registry; no package contains its accuracies."""
        cfg, on_disk = _cfg(name), None
        if cfg.hf_hub_id:
            on_disk = hub.cached(cfg.hf_hub_id, _files_of(cfg)) is not None
        elif cfg.url:
            on_disk = url_path(cfg.url).exists()
        module = _timm().models._registry._model_to_module[_plain(name)]
        return Architecture(name, _plain(name), module, _own_size(name), None, on_disk)

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        """Return (the smallest side that passes through on the meta device, the side of the weights)."""
        tagged = _with_tag(name, spec)
        own = _own_size(tagged)
        return _smallest(_tagged(tagged), own), own

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return ``img_size`` where the parameters depend on the input's size."""
        return {"img_size": input_size} if _cfg(name).fixed_input_size else {}


def is_timm_folder(path: Path) -> bool:
    """Whether a folder is a model as timm saves and publishes one: ``config.json`` and a file of weights."""
    return (path / "config.json").is_file() and not (path / "model.json").exists()


def from_timm_folder(path: Path) -> Pretrained:
    """Return the weights of a folder that timm has saved, with its architecture, classes and preprocessing.

    Raises:
        WeightsError: another library saved it, it is damaged, or it has no weights.
    """
    file = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()), None)
    try:
        facts = json.loads((path / "config.json").read_bytes())
        config = _TimmConfig.model_validate(facts)
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        reason = problems_in(error) if isinstance(error, ValidationError) else error
        raise WeightsError(f"{path / 'config.json'} is not what timm writes: {reason}") from error
    if file is None:
        raise WeightsError(f"{path} has a config.json and no model.safetensors")
    try:
        preprocessing = _preprocessing(config.pretrained_cfg, str(path))
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WeightsError(f"{path / 'config.json'}: its pretrained_cfg cannot be used: {_brief(error)}") from error
    return Pretrained(
        state=read(file),
        tag=WeightsTag(name=f"file:{path.name}/{file.name}", sha256=digest(file)),
        preprocessing=preprocessing,
        architecture=PREFIX + config.architecture.partition(".")[0],
        classes=class_names(facts),
    )


class _TimmConfig(BaseModel):
    """The part of the ``config.json`` written by timm's ``save_for_hf`` that is used."""

    architecture: str
    pretrained_cfg: dict[str, Any] = {}


def _timm() -> Any:
    import timm  # takes 2.7 s, which models of torchvision do without

    return timm


@cache
def _listed() -> frozenset[str]:
    return frozenset(_timm().list_models())


def renamed(name: str) -> str | None:
    """Return the current name and tag of an architecture that timm has renamed (tf_efficientnet_b0_ns), else None."""
    current = _timm().models._registry._deprecated_models.get(_plain(name)) if name.startswith(PREFIX) else None
    return PREFIX + current if current else None


def _check_supported(name: str) -> None:
    if _plain(name) in UNSUPPORTED:
        raise UnknownModelError(f"{name} cannot be used here: {UNSUPPORTED[_plain(name)]}")


def _tagged(name: str) -> str:
    return name.removeprefix(PREFIX)


def _plain(name: str) -> str:
    return _tagged(name).partition(".")[0]


@cache
def _cfg(name: str) -> Any:
    """Return timm's configuration of the weights: of the name's tag, or of the architecture's first."""
    _check_supported(name)
    tagged = _tagged(name)
    _, dot, tag = tagged.partition(".")
    # Only where there is a tag: listing tags takes milliseconds, too long in a list of all architectures.
    if dot and tag not in (tags := TimmSource().published(name)):
        raise WeightsError(f"{PREFIX}{_plain(name)} has no weights called {tag!r}.{suggest(tag, tags)}")
    return _timm().get_pretrained_cfg(tagged)


def _with_tag(name: str, spec: str) -> str:
    """Return the name with the requested tag."""
    tag = _tagged(name).partition(".")[2]
    # Like names of torchvision's weights: in any case, with or without the architecture before them.
    spec = spec.removeprefix(f"{_plain(name)}.")
    spec = {known.lower(): known for known in TimmSource().published(name)}.get(spec.lower(), spec)
    if spec in ("default", tag):
        return name
    if tag:
        raise WeightsError(f"{name} names the weights {tag!r} and --weights {spec!r}; give one of them")
    return f"{name}.{spec}"


def _own_size(name: str) -> int:
    return max(int(side) for side in _cfg(name).input_size[1:])


def _preprocessing(pretrained_cfg: Mapping[str, Any], name: str) -> Preprocessing:
    """Return the preprocessing of weights as in timm's evaluation transform, at the size of their training.

    Raises:
        WeightsError: they expect unsupported inputs (one channel, an unknown interpolation).
    """
    config = _timm().data.resolve_data_config(pretrained_cfg=pretrained_cfg)
    size = config["input_size"][-1]
    try:
        return Preprocessing(
            resize=floor(size / config["crop_pct"]),
            crop=size,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_mode=config["crop_mode"],
        )
    except ValidationError as error:
        raise WeightsError(f"the preprocessing of {name} is not supported: {_brief(error)}") from error


@cache
def _smallest(tagged: str, own: int) -> int:
    source, name = TimmSource(), PREFIX + tagged
    known = _cfg(name).min_input_size
    if known:
        return int(known[-1])
    for size in _TRIED_SIZES:
        if size >= own:
            break
        try:
            with torch.device("meta"), torch.no_grad():
                source.build(name, 2, source.options_for(name, size), None).eval()(torch.empty(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError, UsageError, IndexError, ZeroDivisionError):
            continue
        return size
    return own


def _files_of(cfg: Any) -> tuple[str, ...]:
    """Return the files that may hold the weights, those without pickle first."""
    named = cfg.hf_hub_filename or "pytorch_model.bin"
    safe = named.replace("pytorch_model.bin", "model.safetensors")
    return (safe, named) if safe != named else (named,)


def _download(name: str, progress: Progress) -> tuple[Path, str]:
    cfg = _cfg(name)
    if cfg.hf_hub_id:
        return hub.download(cfg.hf_hub_id, _files_of(cfg), progress)
    if cfg.url:
        return fetch_file(cfg.url, progress)
    raise _without_weights(name)


def _without_weights(name: str) -> WeightsError:
    tags = TimmSource().published(name)
    instead = f"choose one of {', '.join(tags[:5])}" if tags else "use --weights none, or a file"
    return WeightsError(f"timm has no published weights for {name}; {instead}")


def _read(path: Path, name: str) -> Mapping[str, Tensor]:
    """Return the tensors of a file; JAX's arrays (.npz) are named and transposed by the architecture's own code."""
    if path.suffix != ".npz":
        return read(path)
    outputs = _cfg(name).num_classes
    overlay = {"file": str(path), "custom_load": True}
    try:
        model = _timm().create_model(
            _tagged(name), pretrained=True, pretrained_cfg_overlay=overlay, num_classes=outputs
        )
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise WeightsError(f"cannot read weights from {path}: {error}") from error
    state: Mapping[str, Tensor] = model.state_dict()
    return state


def _loaded_by_timm(tagged: str, weights: Pretrained, options: dict[str, int]) -> Mapping[str, Tensor]:
    """Return ``weights`` as timm's own loader converts it for an architecture.

    Raises:
        WeightsError: they belong to another architecture, or have nothing for a part of the backbone.
    """
    # The tensors instead of a file; the head is loaded too, whatever its number of classes.
    overlay: dict[str, object] = {"state_dict": dict(weights.state), "custom_load": False}
    outputs = weights.outputs
    if outputs is None:
        outputs = _outputs_in(weights.state, _cfg(tagged).classifier)
        overlay |= {"num_classes": outputs, "label_offset": 0}
    with _logged() as records:
        try:
            model = _timm().create_model(
                tagged, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=outputs, **options
            )
        except (RuntimeError, KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
            raise WeightsError(f"{weights.tag.name} does not fit {PREFIX}{tagged}: {_brief(error)}") from error
    # timm only logs that parameters stay random because the weights do not contain them.
    missing = next((text for each in records if (text := each.getMessage()).startswith("Missing keys")), None)
    if missing:
        raise WeightsError(f"{weights.tag.name} does not fit {PREFIX}{tagged}: {missing}")
    state: Mapping[str, Tensor] = model.state_dict()
    return state


def _outputs_in(state: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None) -> int:
    """Return how many classes tensors were trained for; 0 where they contain no classifier."""
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    return next((len(state[f"{name}.weight"]) for name in names if f"{name}.weight" in state), 0)


def _brief(error: Exception, length: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= length else f"{text[:length]}..."


@contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what timm logs while it loads weights."""
    logger, handler = logging.getLogger("timm.models._builder"), BufferingHandler(capacity=1000)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
