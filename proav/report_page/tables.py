"""The tables of an evaluation as part of a page: every number with its interval and what it is between real clips; what is missing says what it needs."""

from proav.report_page.page import ACRONYMS, Markup, element, metric_name, table, warning

NAMES = {"av_align": "AV-Align", "av_align_one_to_one": "AV-Align, one to one", "mel_error_db": "Log-mel error, dB"}
HEADS = ["", "value", "95 % interval", "between real clips", "clips", "sources"]


def number_table(values: dict) -> Markup:
    """One table of metrics.json: {"title", "rows": [{"metric", "value", ...}], "left_out": {set and reason: clips}}."""
    rows, said = [], {}
    for row in values["rows"]:
        name = shown_name(row["metric"])
        if row["value"] is None:
            said.setdefault(f"needs {row['needs']}", []).append(name)
            continue
        interval = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        floor = "" if row["floor"] is None else f"{row['floor']:.4g}"
        rows.append([name, f"{row['value']:.4g}", interval, floor, row["clips"], row["sources"]])
        if row["note"]:
            said.setdefault(row["note"], []).append(name)
    content = [element("h3", values["title"])]
    if rows:
        content.append(table(HEADS, rows, caption=values["title"]))
    content += [element("p", f"{', '.join(names)}: {text}.", class_="note") for text, names in said.items()]
    content += [warning(f"{count} clips could not be read and are left out ({what}).") for what, count in values["left_out"].items()]
    return element("div", element("div", content, class_="text"), class_="card wide")


def shown_name(metric: str) -> str:
    """A metric's key for people: names that the field has stay as they are, others become words with their unit."""
    if metric in NAMES:
        return NAMES[metric]
    if any(letter.isupper() for letter in metric) or metric in ACRONYMS:
        return metric if metric not in ACRONYMS else ACRONYMS[metric]
    words, unit = metric_name(metric)
    return f"{words}, {unit}" if unit else words
