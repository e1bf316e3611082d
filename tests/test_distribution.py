"""Installation: messages and documents name this distribution, its extras or its dependencies."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
_TEXTS = [*(_ROOT / "tl_cli").rglob("*.py"), *_ROOT.glob("*.md"), *(_ROOT / "examples").rglob("*.*")]
# Packages that are named without an extra: MLflow needs boto3 for artifacts in S3.
_OTHERS = {"boto3"}


def _advised() -> list[tuple[str, str]]:
    """Return (file, requirement) for every pip install command in messages and documents."""
    found = []
    for path in _TEXTS:
        if path.suffix in {".py", ".md", ".ipynb", ".sh"} and path.name != "CHANGELOG.md":
            # Messages in Python may be split into two literals: join them first.
            text = re.sub(r'"\s*\n\s*f?"', "", path.read_text())
            lines = re.findall(r"pip install ((?:-\w+ )*[^\s;&`\"),]+)", text)
            found += [(path.name, line.split()[-1].strip("'")) for line in lines if "{" not in line]
    return found


def test_the_package_belongs_to_the_distribution_of_this_project() -> None:
    installed = metadata.distribution(_PROJECT["name"])
    assert installed.version == _PROJECT["version"]
    assert ("tl", "tl_cli.__main__:main") in {(point.name, point.value) for point in installed.entry_points}


def test_the_distribution_name_is_not_that_of_another_authors_package() -> None:
    """PyPI has a package tl-cli by another author; tl-train was free in November 2026."""
    assert _PROJECT["name"] == "tl-train"


@pytest.mark.parametrize(("file", "requirement"), _advised())
def test_packages_named_in_messages_are_this_project_or_its_dependencies(file: str, requirement: str) -> None:
    name, _, extras = requirement.rstrip("].").partition("[")
    assert name in {".", _PROJECT["name"], *_OTHERS}, f"{file} advises to install {requirement}"
    assert {extra for extra in extras.split(",") if extra} <= set(_PROJECT["optional-dependencies"]), file
