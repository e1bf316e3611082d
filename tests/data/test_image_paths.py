from pathlib import Path

import pytest

from tl_cli.data.image_paths import list_pictures


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "a.png", "notes.txt", ".hidden.jpg", "sub/c.JPG", "sub/deep/d.webp", ".git/e.jpg", "[x].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(*names: str, lines: tuple[str, ...] = ()) -> list[str]:
    return list(list_pictures(names, lines))


def test_a_folder_is_replaced_by_the_images_below_it(pictures: Path) -> None:
    assert paths_of(".") == ["./[x].jpg", "./a.png", "./b.jpg", "./sub/c.JPG", "./sub/deep/d.webp"]


def test_a_file_is_yielded_whatever_its_suffix(pictures: Path) -> None:
    assert paths_of("notes.txt", "gone.jpg", "[x].jpg") == ["notes.txt", "gone.jpg", "[x].jpg"]


def test_a_list_may_begin_with_a_byte_order_mark_and_contain_file_uris(pictures: Path) -> None:
    odd_name = pictures / "a b#1 é.jpg"
    assert paths_of("-", lines=("\ufeffa.png\r\n", odd_name.as_uri() + "\n")) == ["a.png", str(odd_name)]


def test_patterns_match_as_in_a_shell(pictures: Path) -> None:
    assert paths_of("*.jpg") == ["[x].jpg", "b.jpg"]
    assert paths_of("**/*.webp") == ["sub/deep/d.webp"]
    assert paths_of("s*") == ["sub/c.JPG", "sub/deep/d.webp"]
    assert paths_of("**") == ["[x].jpg", "a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]
    assert paths_of("*") == paths_of("**")
    assert paths_of("**/deep") == ["sub/deep/d.webp"]


def test_names_without_images_are_yielded_themselves(pictures: Path) -> None:
    (pictures / "empty").mkdir()
    assert paths_of("*.gif", "empty", "a.png") == ["*.gif", "empty", "a.png"]


def test_links_are_followed_once(pictures: Path, tmp_path: Path) -> None:
    (pictures / "sub" / "deep" / "loop").symlink_to(pictures / "sub")
    assert paths_of("sub") == ["sub/c.JPG", "sub/deep/d.webp"]
    (pictures / "linked").mkdir()
    (pictures / "linked" / "there").symlink_to(pictures / "sub" / "deep")
    assert paths_of("linked") == ["linked/there/d.webp", "linked/there/loop/c.JPG"]


def test_a_dash_is_replaced_by_the_lines(pictures: Path) -> None:
    assert paths_of("a.png", "-", lines=("x.jpg\n", "\n", "y z.jpg\r\n")) == ["a.png", "x.jpg", "y z.jpg"]


def test_a_list_is_not_read_before_it_is_needed() -> None:
    def lines():
        yield "first.jpg\n"
        raise AssertionError("read too early")

    assert next(list_pictures(["-"], lines())) == "first.jpg"
