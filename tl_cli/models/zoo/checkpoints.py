"""Finds the weights in a checkpoint: their key, and the prefix of their names. Opens no files."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from tl_cli.errors import WeightsError, some

# Keys that are preferred where several dictionaries fit equally well, in this order.
_USUAL = ("", "state_dict", "model_state_dict", "model")
# Prefixes of DataParallel and AveragedModel, torch.compile, and Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_DEPTH = 2


@dataclass(frozen=True, slots=True)
class Chosen:
    """The weights in a checkpoint, and notes about how they were found, for people."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def choose(content: object, key: str, expected: Collection[str], file: str) -> Chosen:
    """Return the tensors of a checkpoint that fit an architecture best, without their names' prefix.

    Args:
        key: of the dictionary to use; empty: the one that fits best.
        expected: names of the architecture's tensors; empty where it is unknown.
        file: for messages.

    Raises:
        WeightsError: there are none, or none under the key; the message lists the existing keys.
    """
    groups = dict(_groups(content))
    if key and key not in groups:
        raise WeightsError(f"{file} has no tensors under {key!r}; it has {_named(groups) or 'none'}")
    if not groups:
        keys = f"with the keys {some(list(map(str, content)))}" if isinstance(content, Mapping) and content else ""
        raise WeightsError(
            f"{file} holds no state_dict (tensors by name); got {type(content).__name__} {keys}".rstrip()
            + "; save one with torch.save(model.state_dict(), 'weights.pth')"
        )
    stripped = {name: _stripped(state, expected) for name, state in groups.items()}

    def rank(name: str) -> tuple[int, bool, int]:
        fits = sum(tensor in expected for tensor in stripped[name][1])
        usual = _USUAL.index(name) if name in _USUAL else len(_USUAL)
        return -fits, "ema" in name.lower(), usual

    chosen = key or min(groups, key=rank)
    prefix, state, left_out = stripped[chosen]
    notes = []
    others = [name for name in groups if name != chosen and rank(name)[0] and rank(name)[0] <= rank(chosen)[0] // 2]
    if others and not key:
        choice = f"to choose: --weights '{file}#{others[0]}'"
        notes.append(f"took {chosen or 'the tensors'} from {file}, not {_named(others)}; {choice}")
    elif chosen not in _USUAL and not key:
        notes.append(f"took {chosen} from {file}")
    if prefix not in ("", *_WRAPPERS):
        notes.append(f"took the tensors whose names begin with {prefix!r}")
    if left_out:
        notes.append(f"left out {len(left_out):,} other tensors: {some(left_out, 3)}")
    return Chosen(state, tuple(notes))


def _named(groups: Collection[str]) -> str:
    return some([name or "tensors outside of any dictionary" for name in groups])


def _groups(content: object, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary of tensors by name, with the keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and depth:
            yield from _groups(value, f"{name}.{key}" if name else key, depth - 1)


def _stripped(state: Mapping[str, Tensor], expected: Collection[str]) -> tuple[str, dict[str, Tensor], list[str]]:
    """Return the prefix, the tensors that have it under names without it, and the names of all others."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    prefix = max(counts, key=lambda each: (counts[each], -len(each)), default="")
    # A few names may fit by chance, and old files have other names: then a prefix must be common to all names.
    if counts[prefix] * 2 < len(expected) or not counts:
        prefix = ""
        while wrapper := next((each for each in _WRAPPERS if all(k.startswith(prefix + each) for k in state)), ""):
            prefix += wrapper
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return prefix, inner, [name for name in state if not name.startswith(prefix)]


def with_plain_head(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return tensors whose head has the architecture's names or is left out, and notes for people.

    A replaced head, such as ``fc = Sequential(Dropout(), Linear(...))``, is used if it is a single linear layer.

    Args:
        expected: the architecture's tensors, for any number of classes.
        head: names of the modules that produce the classes.
    """
    chosen, notes = dict(state), []
    backbone = [name for name in expected if name.rpartition(".")[0] not in head]
    if not all(name in state for name in backbone if not name.endswith("num_batches_tracked")):
        return chosen, ()  # other names, which the library converts, the head's too
    for part in head:
        root = part.partition(".")[0]
        foreign = [
            name
            for name in chosen
            if name.startswith(f"{root}.") and (name not in expected or name.startswith(part + "."))
        ]
        strange = [name for name in foreign if name not in expected]
        if not strange:
            continue
        layers = {name.rpartition(".")[0] for name in foreign}
        layer = layers.pop() if len(layers) == 1 else ""
        own, weight = expected.get(f"{part}.weight"), chosen.get(f"{layer}.weight")
        fits = own is not None and weight is not None and weight.shape[1:] == own.shape[1:]
        tensors = {f"{part}.{name.rpartition('.')[2]}": chosen[name] for name in foreign}
        chosen = {name: value for name, value in chosen.items() if name not in foreign}
        if fits and tensors.keys() == {name for name in expected if name.rpartition(".")[0] == part}:
            chosen |= tensors
            notes.append(f"took {layer} as the head {part}")
        else:
            notes.append(f"left out the weights' own head: it has other layers ({some(strange, 3)})")
    return chosen, tuple(notes)
