"""Tables of numbers as text, alone or beside those of another evaluation. numbers.py computes the numbers."""

import json

from proav import storage
from proav.errors import UserError
from proav.reports.kit.tables import beside, values_text

HEADS = ("", "value", "95 % interval", "real/real", "clips", "sources")


def summary(metrics: dict) -> str:
    """The text of metrics.json for the terminal: a few lines, then the tables."""
    lines = []
    split = metrics["protocol"]["record"]["real"].get("reconstruction", {}).get("split")
    if "reconstruction" in metrics:
        r = metrics["reconstruction"]
        lines += [
            f"reconstruction of {r['num_clips']} clips from {r['num_sources']} {split} sources:",
            f"  picture {r['psnr_db']:.2f} dB PSNR ({beside(r, 'picture')})",
            f"  sound {r['mel_error_db']:.2f} dB log-mel error ({beside(r, 'sound')})",
        ]
        yardsticks = metrics.get("yardsticks", {})
        if "values_per_stream" in yardsticks:
            size = f"{values_text(yardsticks['values_per_stream'])}, as MDSA"
            lines.append(f"  linear planes and cosine transform: with {size}, fitted on training clips")
        elif "absent" in yardsticks:
            lines.append(f"  without linear planes and cosine transform: {yardsticks['absent']}")
    if "stdit" in metrics:
        s = metrics["stdit"]
        at_first = f"at initialization {s['loss_at_initialization']:.4f}"
        lines.append(f"ST-DiT: loss {s['loss']:.4f} on {s['num_windows']} {split} windows ({at_first})")
    lines += [format_table(table) for table in metrics["tables"]]
    protocol = metrics["protocol"]
    return "\n".join([*lines, f"protocol {protocol['record']['name']}, {protocol['hash']}"])


def format_table(table: dict) -> str:
    """The table in columns; for numbers that cannot be computed, lines say what they need."""
    rows = [HEADS]
    needs: dict[str, list[str]] = {}
    for row in table["rows"]:
        if row["value"] is None:
            needs.setdefault(row["needs"], []).append(row["metric"])
            continue
        interval = "" if row["low"] is None else f"{row['low']:.4g} .. {row['high']:.4g}"
        floor = "" if row["floor"] is None else f"{row['floor']:.4g}"
        rows.append(
            (
                row["metric"],
                f"{row['value']:.4g}",
                interval,
                floor,
                f"{row['clips']:,}",
                f"{row['sources']:,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = [
        "  "
        + "  ".join(
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    lines += [f"  {', '.join(metrics)}: needs {what}" for what, metrics in needs.items()]
    lines += [f"  {metric} of known clips: {text}" for metric, text in table.get("scale", {}).items()]
    lines += [f"  left out: {count:,} clips, {what}" for what, count in table["left_out"].items()]
    return "\n".join([f"{table['title']}:", *lines])


def compare_tables(metrics: dict, path: str, other_path: str) -> str:
    """Both evaluations' numbers side by side.

    Raises UserError with the first differences if their protocols differ.
    """
    ours, (their_hash, their_record, tables) = metrics["protocol"], _read_other(other_path)
    if their_hash != ours["hash"]:
        differing = _differences(json.loads(json.dumps(ours["record"])), their_record)
        told = ", ".join(differing[:4]) or f"the hash alone ({ours['hash']} here, {their_hash} there)"
        raise UserError(
            f"{path} and {other_path} were measured by different protocols, so their numbers cannot be "
            f"compared; they differ in {told}"
        )
    lines = [f"compared with {other_path}, protocol {their_hash}:"]
    for table in metrics["tables"]:
        for row in table["rows"]:
            before = tables.get(table["name"], {}).get(row["metric"])
            if row["value"] is not None and before is not None:
                lines.append(
                    f"  {table['name']} {row['metric']}: {row['value']:.4g} here, {before:.4g} there"
                )
    return "\n".join(lines)


def _read_other(path: str) -> tuple[str, dict, dict[str, dict[str, float | None]]]:
    """Hash and record of another run's protocol, and {table: {metric: value}}. Raises UserError."""
    wanted = "the eval/metrics.json of another run, such as evaluate.compare_with=RUN/eval/metrics.json"
    if storage.is_folder(path):
        raise UserError(f"evaluate.compare_with={path} is a folder; expected {wanted}")
    if not storage.exists(path):
        raise UserError(f"evaluate.compare_with={path}: no such file; expected {wanted}")
    try:
        other = json.loads(storage.read_text(path))
        their_hash, record = (other["protocol"][key] for key in ("hash", "record"))
        if not isinstance(record, dict):
            raise TypeError(f"protocol.record is {type(record).__name__}, not an object")
        tables = {
            table["name"]: {
                row["metric"]: None if row["value"] is None else float(row["value"]) for row in table["rows"]
            }
            for table in other["tables"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no metrics.json of this version of proav ({type(error).__name__}: {error}); "
            f"expected {wanted}"
        ) from None
    return their_hash, record, tables


def _differences(ours: dict, theirs: dict, prefix: str = "") -> list[str]:
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({str(a)[:40]} here, {str(b)[:40]} there)")
    return found
