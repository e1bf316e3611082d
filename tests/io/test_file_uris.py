import pytest

from tl_cli.errors import UsageError
from tl_cli.io.file_uris import local_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a/my%20photos", "/a/my photos"),
        ("file://localhost/a/b", "/a/b"),
        ("FILE:/a/b", "/a/b"),
        ("photos/file:x", "photos/file:x"),
        ("/a/%20", "/a/%20"),
    ],
)
def test_a_file_uri_is_its_path_and_other_text_is_unchanged(text: str, path: str) -> None:
    assert local_path(text) == path


def test_a_file_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="nas"):
        local_path("file://nas/photos")
