"""Prints the findings in a data set."""

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tl_cli.api.data_check import Doubts, class_counts, class_ratio, crop_notes, readable_files, sizes_of
from tl_cli.data.balance import UNEVEN
from tl_cli.data.checks import Findings, Twins
from tl_cli.errors import some
from tl_cli.ui.terminal.console import plain, shortened
from tl_cli.ui.terminal.layout import Cells, room_for_bar, table_of, text_bar

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
        console.print(plain(f"tl train would refuse these data: {fault.splitlines()[0]}", "bad", limit=1000))
    bad = [f"{file.name}: {file.reason}" for _, file in findings.bad()]
    _print_list(console, f"{_count(len(bad), 'file')} cannot be decoded" if bad else "every file can be decoded", bad)
    flat = [
        f"{findings.name(key)}: {_count(look.levels, 'level')}, {look.darkest} to {look.brightest} of 0 to 255"
        for key, look in findings.flat()
    ]
    if flat:
        _print_list(console, f"{_count(len(flat), 'picture')} with hardly any grey levels", flat)
    _print_twins(console, findings)
    if doubts is not None:
        _print_doubts(console, findings, doubts)


def _print_classes(console: Console, findings: Findings) -> None:
    counts, parts = class_counts(findings), list(findings.found.parts)
    totals = [sum(row.values()) for row in counts]
    order = sorted(range(len(counts)), key=lambda label: -totals[label])
    shown = order if len(order) <= _CLASSES else [*order[: _CLASSES // 2], *order[-_CLASSES // 2 :]]
    columns: dict[str, Cells] = {"class": [shortened(findings.found.classes[label], 20) for label in shown]}
    columns |= {part: [f"{counts[label][part]:,}" for label in shown] for part in parts}
    room = room_for_bar(columns, console.width, least=0, most=30)
    if room >= 6:
        largest = max(totals, default=1)
        # Each class gets a bar, however small its share.
        shares = (max(1 / room, totals[label] / largest) for label in shown)
        columns[""] = [text_bar(share, room, console) for share in shares]
    console.print(table_of(columns, left=("class",)))
    if len(shown) < len(order):
        console.print(Text(f"and {len(order) - len(shown)} classes between these; --json has all", style="dim"))
    ratio = class_ratio(findings)
    if ratio is not None and ratio >= _WORTH_NAMING:
        advice = "uneven: consider --sampler balanced or --class-weights balanced"
        if ratio >= UNEVEN:
            advice = "tl train will use the balanced sampler (--recipe blog will not)"
        # Rounded down, so that it is on the same side of a limit as the ratio itself.
        times = f"{math.floor(10 * ratio) / 10:.1f}".removesuffix(".0")
        note = f"the largest class has {times} times as many training images as the smallest; {advice}"
        console.print(plain(note, "yellow", limit=400))


def _print_files(console: Console, findings: Findings) -> None:
    looks = readable_files(findings)
    sizes = sizes_of(findings)
    if sizes is None:
        return
    low, middle, high = sizes["shortest_side"]
    if low == high and sizes["one_size"]:
        console.print(f"{len(looks):,} pictures of {looks[0].header.size[0]} x {looks[0].header.size[1]} pixels")
    else:
        sides = f"{low} to {high} pixels, median {middle}" if low < high else f"{low} pixels"
        console.print(f"{len(looks):,} pictures, shorter side {sides}")
    formats, modes = (
        ", ".join(f"{count:,} {name}" for name, count in Counter(names).most_common())
        for names in ((look.header.kind for look in looks), (look.header.mode for look in looks))
    )
    console.print(plain(f"{formats}; {modes}", "dim"))
    for count, what in (
        (sum(look.header.turned for look in looks), "turned upright by EXIF data"),
        (sum(look.header.frames > 1 for look in looks), "animated: the first frame is used"),
        (sum(not look.header.frames for look in looks), "truncated after the first frame, which is used"),
        (sum(max(look.header.size) > 5 * min(look.header.size) for look in looks), "over five times as long as wide"),
    ):
        if count:
            console.print(plain(f"{count:,} {what}", "dim"))


def _print_twins(console: Console, findings: Findings) -> None:
    if findings.not_compared:
        many = f"{_count(findings.not_compared, 'picture')} resembled too many others to be compared with all of them"
        console.print(plain(many, "yellow"))
    if findings.plain():
        few = f"{_count(findings.plain(), 'picture')} too small or too plain to compare by looks, only for equality"
        console.print(plain(few, "dim"))
    if not findings.twins and not findings.not_compared:
        both = "" if findings.plain() else " or look alike"
        console.print(Text(f"no two pictures are equal{both}", style="good"))
    for exact in (True, False) if findings.twins else ():
        _print_kind(console, findings, exact=exact)


def _print_kind(console: Console, findings: Findings, *, exact: bool) -> None:
    """Print the groups of equal pictures, or of those that look alike: across parts, across classes, the others."""
    what, style = ("of equal pictures", "bad") if exact else ("of pictures that look alike", "yellow")
    groups = [group for group in findings.twins if group.exact == exact]
    # Compared by identity: groups may be thousands, and large.
    across, conflicting = ({id(group) for group in some} for some in (findings.across(), findings.conflicting()))
    for (part, earlier), number in findings.shared(exact=exact).items():
        verb = ("is" if number == 1 else "are") if exact else ("looks" if number == 1 else "look")
        link = f"also in {earlier}" if exact else f"like {earlier} images"
        console.print(plain(f"{_count(number, f'{part} image')} {verb} {link}", style))
    _print_groups(console, findings, "", [group for group in groups if id(group) in across], "")
    only = [group for group in groups if id(group) in conflicting - across]
    _print_groups(console, findings, f"{what} in several classes", only, style)
    _print_groups(console, findings, what, [g for g in groups if id(g) not in across | conflicting], "yellow")


def _print_groups(console: Console, findings: Findings, title: str, groups: Sequence[Twins], style: str) -> None:
    if groups and title:
        console.print(plain(f"{_count(len(groups), 'group')} {title}", style))
    rows = []
    for group in groups[:_SHOWN]:
        have_labels = len({findings.label(key) for key in group.places}) > 1
        names = [findings.name(key) + (f" ({findings.label(key)})" if have_labels else "") for key in group.places[:4]]
        more = f" and {len(group.places) - 4} more" if len(group.places) > 4 else ""
        rows.append((" = " if group.exact else " ~ ").join(names) + more)
    _print_rows(console, rows, len(groups), "more groups")


def _print_doubts(console: Console, findings: Findings, doubts: Doubts) -> None:
    if doubts.why_not:
        console.print(plain(doubts.why_not, "dim", limit=400))
        return
    classes = findings.found.classes
    if doubts.left_out:
        single = f"not compared, as no second image of the class was read: {some(doubts.left_out)}"
        console.print(plain(single, "yellow", limit=400))
    if len(doubts.suspects) > doubts.compared / 2:
        unsure = f"{doubts.model} does not separate these classes: most of its doubts will be wrong"
        console.print(plain(unsure, "yellow"))
    compared = f"{len(doubts.suspects):,} of {doubts.compared:,} labels"
    rows = [
        f"{findings.name(('train', each.index))}: {classes[each.given]}, likely {classes[each.likely]} "
        f"({each.confidence:.0%})"
        for each in doubts.suspects
    ]
    _print_list(console, f"{compared} are doubtful by the features of {doubts.model}; most confident first", rows)


def _print_list(console: Console, title: str, rows: Sequence[str]) -> None:
    console.print(plain(title, "yellow" if rows else "good"))
    _print_rows(console, rows, len(rows), "more")


def _print_rows(console: Console, rows: Sequence[str], total: int, more: str) -> None:
    for row in rows[:_SHOWN]:
        console.print(plain(f"  {row}", limit=600))
    if total > _SHOWN:
        console.print(Text(f"  and {total - _SHOWN:,} {more}; --json has all", style="dim"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
