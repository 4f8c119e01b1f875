"""Lines of prose in the documents are at most as long as the linter allows for code."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
FOLDERS = ("docs", "bench", "examples", "cluster", "proav")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))})


def long_prose(text: str) -> list[int]:
    """Numbers of the lines that are too long. Code, tables and what a command has printed may be longer."""
    fenced, numbers = False, []
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        if len(line) > WIDTH and not fenced and not line.startswith("    ") and not line.startswith("|"):
            numbers.append(number)
    return numbers


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_lines_of_prose_are_short(path):
    assert not long_prose(path.read_text()), f"lines of more than {WIDTH} characters"


def test_only_prose_counts():
    line = "a word " * (WIDTH // 7 + 1)
    assert long_prose(f"{line}\n\n    {line}\n\n| {line} |\n\n```\n{line}\n```\n\n{line}") == [1, 11]
