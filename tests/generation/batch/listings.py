"""Listings of tests, and the tasks of their model."""

from pathlib import Path

ALL_TASKS = "diffusion.task_weights={joint: 1, a2v: 1, v2a: 1, i2av: 1, continue: 1, inpaint: 1}"


def listing_of(folder: Path, *lines: str) -> str:
    """Writes the lines as <folder>/rows.csv; the setting that names it."""
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return f"generate.listing={folder / 'rows.csv'}"
