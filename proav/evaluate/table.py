"""Tables of numbers as text, and beside those of another evaluation."""

import json

from proav import storage
from proav.errors import UserError

HEADS = ("", "value", "95 % interval", "real/real", "clips", "sources")


def format_table(table: dict) -> str:
    """The table in columns; a number that cannot be had says what it needs."""
    rows = [HEADS]
    needs: dict[str, list[str]] = {}
    for row in table["rows"]:
        if row["value"] is None:
            needs.setdefault(row["needs"], []).append(row["metric"])
            continue
        interval = "" if row["low"] is None else f"{row['low']:.4g} .. {row['high']:.4g}"
        floor = "" if row["floor"] is None else f"{row['floor']:.4g}"
        rows.append((row["metric"], f"{row['value']:.4g}", interval, floor, f"{row['clips']:,}", f"{row['sources']:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = [
        "  " + "  ".join(text.ljust(width) if not column else text.rjust(width) for column, (text, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    lines += [f"  {', '.join(metrics)}: needs {what}" for what, metrics in needs.items()]
    lines += [f"  left out: {count:,} clips, {what}" for what, count in table["left_out"].items()]
    return "\n".join([f"{table['title']}:", *lines])


def compare_tables(metrics: dict, path: str, other_path: str) -> str:
    """Both evaluations' numbers side by side. Raises UserError where their protocols differ, with the first differences."""
    if not storage.exists(other_path):
        raise UserError(f"evaluate.compare_with={other_path}: no such file; expected the eval/metrics.json of another run")
    try:
        other = json.loads(storage.read_text(other_path))
        theirs = other["protocol"]
        if theirs["hash"] != metrics["protocol"]["hash"]:
            differing = _differences(json.loads(json.dumps(metrics["protocol"]["record"])), theirs["record"])
            raise UserError(
                f"{path} and {other_path} were measured by different protocols, so their numbers cannot be compared; they differ in {', '.join(differing[:4])}"
            )
        tables = {table["name"]: {row["metric"]: row["value"] for row in table["rows"]} for table in other["tables"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{other_path} is no metrics.json of this version of proav ({type(error).__name__}: {error})") from None
    lines = [f"compared with {other_path}, protocol {theirs['hash']}:"]
    for table in metrics["tables"]:
        for row in table["rows"]:
            before = tables.get(table["name"], {}).get(row["metric"])
            if row["value"] is not None and before is not None:
                lines.append(f"  {table['name']} {row['metric']}: {row['value']:.4g} here, {before:.4g} there")
    return "\n".join(lines)


def _differences(ours: dict, theirs: dict, prefix: str = "") -> list[str]:
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({str(a)[:40]} here, {str(b)[:40]} there)")
    return found
