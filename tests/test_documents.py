"""Lines of prose in the documents are at most as long as the linter allows for code.

So are all lines of code and settings, in every language.
"""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
FOLDERS = ("docs", "bench", "examples", "cluster", "proav")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))})
KINDS = {".css", ".html", ".js", ".py", ".sh", ".toml", ".yaml", ".yml"}
NAMES = {".gitignore", ".rayignore", "Dockerfile", "Makefile"}


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


def code_files() -> list[Path]:
    """Files of code and settings in the folders of the repository and at its top."""
    folders = (*FOLDERS, ".ci", "configs", "ray_jobs", "tests")
    paths = [*ROOT.iterdir(), *(path for name in folders for path in (ROOT / name).rglob("*"))]
    return sorted(
        path
        for path in paths
        if path.is_file() and (path.suffix in KINDS or path.name in NAMES or path.parent.name == ".ci")
    )


def test_lines_of_code_are_short():
    files = code_files()
    assert {ROOT / "Makefile", ROOT / ".ci/run", Path(__file__)} <= set(files)
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if len(line) > WIDTH
    ]
    assert not long, f"lines of more than {WIDTH} characters"
