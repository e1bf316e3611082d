from rich.cells import cell_len
from rich.text import Text

from tests.support.screens import make_screen, printed
from tl_cli.ui.terminal.layout import facts_grid, flow, progress_bar, room_for_bar, table_of, text_bar, width_of


def lines_of(width: int, content, **options) -> list[str]:
    screen = make_screen(width, **options)
    screen.print(content)
    return [line.rstrip() for line in printed(screen).splitlines()]


def test_numbers_are_right_aligned_text_left_aligned_and_markup_is_text() -> None:
    table = table_of({"name": ["[red]", "b"], "n": ["1", "1,000"], "": ["=", "=="]}, left=("name",))
    assert lines_of(40, table) == ["name       n", "[red]      1  =", "b      1,000  =="]


def test_the_width_of_columns_is_that_of_the_printed_table() -> None:
    columns = {"name": ["猫猫猫", "b"], "number": [Text("1"), "1,000"]}
    assert width_of(columns) == 2 * (6 + 2)
    table = table_of({**columns, "end": ["x", "x"]})
    assert max(map(cell_len, lines_of(80, table))) == width_of(columns) + len("end")
    assert room_for_bar(columns, 40) == 40 - 16
    assert room_for_bar(columns, 20, least=6) == 6
    assert room_for_bar(columns, 200, most=30) == 30


def test_entries_flow_into_as_many_lines_as_they_need() -> None:
    entries = [Text("aaaa"), Text("bbbb"), Text("cccc")]
    assert [line.plain for line in flow(entries, 10)] == ["aaaa  bbbb", "cccc"]
    assert [line.plain for line in flow(entries, 3)] == ["aaaa", "bbbb", "cccc"]


def test_facts_are_safe_and_folded_beside_their_names() -> None:
    lines = lines_of(20, facts_grid([("a", "\x1b[31m" + "x" * 20), ("bbb", Text("y"))]))
    assert lines == ["a    \\x1b[31mxxxxxxx", "     xxxxxxxxxxxxx", "bbb  y"]


def test_a_bar_is_as_long_as_its_share_and_ascii_on_an_ascii_terminal() -> None:
    assert text_bar(0.5, 10, make_screen(80)).plain == "█" * 5
    assert text_bar(0.5, 10, make_screen(80, encoding="ascii")).plain == "#" * 5


def test_a_progress_bar_is_full_at_its_end_and_never_wider_than_the_terminal() -> None:
    for width in (40, 80, 200):
        (line,) = lines_of(width, progress_bar("a label that is rather long" * 3, 7, 5, "a note" * 9, width))
        assert len(line) <= width
    full, half = (lines_of(80, progress_bar("x", done, 10, "", 80))[0].count("━") for done in (10, 5))
    assert full == 80 - 20 - 20 - 4
    assert half in (full // 2, full // 2 - 1, full)  # without colours the rest of the bar is not drawn
