"""Prints the findings in a data set."""

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_cli.api.data_check import Doubts, class_counts, class_ratio, crop_notes, readable, sizes_of
from tl_cli.data.balance import UNEVEN
from tl_cli.data.checks import Findings, Twins
from tl_cli.errors import some
from tl_cli.ui.terminal.console import is_ascii, plain, shortened

_SHOWN = 10
_CLASSES = 30
# Ratio of the largest class to the smallest from which on a sampler is worth a thought.
_WORTH_NAMING = 3.0


def print_findings(console: Console, findings: Findings, doubts: Doubts | None) -> None:
    """Print what was found, what matters most last."""
    _print_classes(console, findings)
    console.print()
    _print_files(console, findings)
    for note in [*findings.found.notes, *crop_notes(findings)]:
        console.print(plain(f"note: {note}", "yellow", limit=400))
    for fault in findings.found.faults:
        console.print(plain(f"a training is refused: {fault.splitlines()[0]}", "bad", limit=1000))
    bad = findings.bad()
    _print_list(
        console,
        f"{_count(len(bad), 'file')} cannot be decoded" if bad else "every file can be decoded",
        [f"{found.name}: {found.reason}" for _, found in bad],
        is_good=not bad,
    )
    flat = [
        f"{findings.name(place)}: {_count(look.levels, 'level')}, {look.darkest} to {look.brightest} of 0 to 255"
        for place, look in findings.flat()
    ]
    if flat:
        _print_list(console, f"{_count(len(flat), 'picture')} with hardly any grey levels", flat, is_good=False)
    _print_twins(console, findings)
    if doubts is not None:
        _print_doubts(console, findings, doubts)


def _print_classes(console: Console, findings: Findings) -> None:
    found, counts = findings.found, class_counts(findings)
    parts = list(found.parts)
    largest = max((sum(row.values()) for row in counts), default=1)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", no_wrap=True)
    for part in parts:
        table.add_column(part, justify="right", no_wrap=True)
    room = console.width - 24 - 9 * len(parts)
    if room >= 6:
        table.add_column("", no_wrap=True)
    order = sorted(range(len(counts)), key=lambda place: -sum(counts[place].values()))
    shown = order if len(order) <= _CLASSES else [*order[: _CLASSES // 2], *order[-_CLASSES // 2 :]]
    block = "#" if is_ascii(console) else "█"
    for place in shown:
        row = counts[place]
        cells: list[Text] = [Text(f"{row[part]:,}") for part in parts]
        if room >= 6:
            cells.append(Text(block * max(1, round(sum(row.values()) / largest * min(30, room))), style="train"))
        table.add_row(Text(shortened(found.classes[place], 20)), *cells)
    console.print(table)
    if len(shown) < len(order):
        console.print(Text(f"and {len(order) - len(shown)} classes between these; --json has all", style="dim"))
    ratio = class_ratio(findings)
    if ratio is not None and ratio >= _WORTH_NAMING:
        advice = "uneven: consider --sampler balanced or --class-weights balanced"
        if ratio >= UNEVEN:
            advice = "tl train will use the balanced sampler (--recipe blog will not)"
        said = f"the largest class has {_times(ratio)} times as many training images as the smallest; {advice}"
        console.print(plain(said, "yellow", limit=400))


def _times(ratio: float) -> str:
    """Return a ratio rounded down, so that it is on the same side of a limit as the ratio itself."""
    return f"{math.floor(10 * ratio) / 10:.1f}".removesuffix(".0")


def _print_files(console: Console, findings: Findings) -> None:
    looks = readable(findings)
    sizes = sizes_of(findings)
    if sizes is None:
        return
    same = sizes["shortest_side"][0] == sizes["shortest_side"][2] and sizes["one_size"]
    if same:
        console.print(f"{len(looks):,} pictures of {looks[0].header.size[0]} x {looks[0].header.size[1]} pixels")
    else:
        low, middle, high = sizes["shortest_side"]
        sides = f"{low} to {high} pixels, median {middle}" if low < high else f"{low} pixels"
        console.print(f"{len(looks):,} pictures, shorter side {sides}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(look.header.kind for look in looks).most_common())
    modes = ", ".join(f"{count:,} {mode}" for mode, count in Counter(look.header.mode for look in looks).most_common())
    console.print(plain(f"{kinds}; {modes}", "dim"))
    odd = [
        (sum(look.header.turned for look in looks), "turned by EXIF data, and used upright"),
        (sum(look.header.frames > 1 for look in looks), "animated: the first frame is used"),
        (sum(not look.header.frames for look in looks), "torn after the first frame, which is used"),
        (sum(max(look.header.size) > 5 * min(look.header.size) for look in looks), "over five times as long as wide"),
    ]
    for count, what in odd:
        if count:
            console.print(plain(f"{count:,} {what}", "dim"))


def _print_twins(console: Console, findings: Findings) -> None:
    if findings.not_compared:
        many = f"{_count(findings.not_compared, 'picture')} resembled too many others to be compared with all of them"
        console.print(plain(many, "yellow"))
    if findings.plain():
        few = f"{_count(findings.plain(), 'picture')} too small or too plain to compare by looks, only for equality"
        console.print(plain(few, "dim"))
    if not findings.twins:
        if not findings.not_compared:
            both = "" if findings.plain() else " or look alike"
            console.print(Text(f"no two pictures are equal{both}", style="good"))
        return
    for exact in (True, False):
        _print_kind(console, findings, exact=exact)


def _print_kind(console: Console, findings: Findings, *, exact: bool) -> None:
    """Print the groups of equal pictures, or of those that look alike: across parts, across classes, the others."""
    what = "of equal pictures" if exact else "of pictures that look alike"
    groups = [group for group in findings.twins if group.exact == exact]
    # By which object they are: groups may be thousands, and large.
    across, conflicting = ({id(group) for group in found} for found in (findings.across(), findings.conflicting()))
    for (part, earlier), number in findings.shared(exact=exact).items():
        verb = ("is" if number == 1 else "are") if exact else ("looks" if number == 1 else "look")
        link = f"also in {earlier}" if exact else f"like {earlier} images"
        console.print(plain(f"{_count(number, f'{part} image')} {verb} {link}", "bad" if exact else "yellow"))
    _print_groups(console, findings, "", [group for group in groups if id(group) in across], "")
    only = [group for group in groups if id(group) in conflicting - across]
    _print_groups(console, findings, f"{what} in several classes", only, "bad" if exact else "yellow")
    _print_groups(console, findings, what, [g for g in groups if id(g) not in across | conflicting], "yellow")


def _print_groups(console: Console, findings: Findings, title: str, groups: Sequence[Twins], style: str) -> None:
    if groups and title:
        console.print(plain(f"{_count(len(groups), 'group')} {title}", style))
    for group in groups[:_SHOWN]:
        have_labels = len({findings.label(place) for place in group.places}) > 1
        names = [
            findings.name(place) + (f" ({findings.label(place)})" if have_labels else "") for place in group.places[:4]
        ]
        more = f" and {len(group.places) - 4} more" if len(group.places) > 4 else ""
        sign = "=" if group.exact else "~"
        console.print(plain(f"  {f' {sign} '.join(names)}{more}", limit=600))
    if len(groups) > _SHOWN:
        console.print(Text(f"  and {len(groups) - _SHOWN:,} more groups; --json has all", style="dim"))


def _print_doubts(console: Console, findings: Findings, doubts: Doubts) -> None:
    if doubts.why_not:
        console.print(plain(doubts.why_not, "dim", limit=400))
        return
    classes = findings.found.classes
    if doubts.left_out:
        single = f"not compared, for want of a second image among those looked at: {some(doubts.left_out)}"
        console.print(plain(single, "yellow", limit=400))
    if len(doubts.suspects) > doubts.compared / 2:
        console.print(plain(f"{doubts.model} cannot tell these classes apart: its doubts say little", "yellow"))
    compared = f"{len(doubts.suspects):,} of {doubts.compared:,} labels"
    title = f"{compared} are in doubt, as {doubts.model} sees the images; the surest first"
    rows = [
        f"{findings.name(('train', each.index))}: {classes[each.given]}, likely {classes[each.likely]} "
        f"({each.confidence:.0%})"
        for each in doubts.suspects
    ]
    _print_list(console, title, rows, is_good=not rows)


def _print_list(console: Console, title: str, rows: Sequence[str], *, is_good: bool) -> None:
    console.print(plain(title, "good" if is_good else "yellow"))
    for row in rows[:_SHOWN]:
        console.print(plain(f"  {row}", limit=600))
    if len(rows) > _SHOWN:
        console.print(Text(f"  and {len(rows) - _SHOWN:,} more; --json has all", style="dim"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
