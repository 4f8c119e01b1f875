"""The tables of an evaluation as part of a page.

Every number has its interval and, beside it, the same number between real clips. For a missing number, the
table says what it needs. The numbers are measured in `proav/evaluate`.
"""

from collections.abc import Sequence

from proav.reports.kit.page import ACRONYMS, Markup, element, metric_name, table, warning

NAMES = {
    "av_align": "AV-Align",
    "av_align_one_to_one": "AV-Align, one to one",
    "psnr_mean_colour_db": "PSNR of the mean colour, dB",
    "psnr_temporal_mean_db": "PSNR of the temporal mean, dB",
    "psnr_linear_planes_db": "PSNR of linear planes, dB",
    "psnr_cosine_db": "PSNR of the cosine transform, dB",
    "mel_error_db": "Log-mel error, dB",
    "mel_error_mean_mel_db": "Log-mel error of the mean mel, dB",
    "mel_error_linear_planes_db": "Log-mel error of linear planes, dB",
    "mel_error_cosine_db": "Log-mel error of the cosine transform, dB",
    "blockiness_sound": "Blockiness of the sound",
}
BESIDE = {
    "picture": (
        ("mean colour", "psnr_mean_colour_db"),
        ("temporal mean picture", "psnr_temporal_mean_db"),
        ("linear planes", "psnr_linear_planes_db"),
        ("cosine transform", "psnr_cosine_db"),
    ),
    "sound": (
        ("mean mel", "mel_error_mean_mel_db"),
        ("linear planes", "mel_error_linear_planes_db"),
        ("cosine transform", "mel_error_cosine_db"),
    ),
}
"""Numbers shown beside a reconstruction's PSNR and log-mel error: words, and the key of the mean."""
HEADS = ["", "value", "95 % interval", "between real clips", "", "clips", "sources"]
STRIP_WIDTH, STRIP_HEIGHT, STRIP_EDGE = 132, 18, 8


def number_table(values: dict) -> Markup:
    """One table of metrics.json.

    values: {"title", "rows": [{"metric", "value", ...}], "left_out": {set and reason: clips}}, and for clips
    with known ground truth also "scale": {metric: text}.
    """
    rows, said = [], {}
    for row in values["rows"]:
        name = shown_name(row["metric"])
        if row["value"] is None:
            said.setdefault(f"needs {row['needs']}", []).append(name)
            continue
        interval = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        floor = "" if row["floor"] is None else f"{row['floor']:.4g}"
        rows.append(
            [
                name,
                f"{row['value']:.4g}",
                interval,
                floor,
                interval_strip(name, row),
                row["clips"],
                row["sources"],
            ]
        )
        if row["note"]:
            said.setdefault(row["note"], []).append(name)
    content = [element("h3", values["title"])]
    if rows:
        content.append(table(HEADS, rows, caption=values["title"]))
        drawn = (
            "The value is drawn as a dot on its interval, the number between real clips as a bar. "
            "Each row has a scale of its own."
        )
        content.append(element("p", drawn, class_="note"))
    content += [element("p", f"{', '.join(names)}: {text}.", class_="note") for text, names in said.items()]
    if scale := values.get("scale", {}):
        said = "; ".join(f"{shown_name(metric)}: {text}" for metric, text in scale.items())
        note = f"For clips with known ground truth (bench/metrics/world_metric.py): {said}."
        content.append(element("p", note, class_="note"))
    content += [
        warning(f"{count} clips could not be read and are left out ({what}).")
        for what, count in values["left_out"].items()
    ]
    return element("div", element("div", content, class_="text"), class_="card wide")


def interval_strip(name: str, row: dict) -> Markup | str:
    """The value as a dot on its interval, with a bar at the number between real clips.

    Each row has a scale of its own. Returns "" if the row has only the value.
    """
    marks = [row[key] for key in ("value", "low", "high", "floor") if row[key] is not None]
    low, high = min(marks), max(marks)
    if len(marks) == 1 or low == high:
        return ""

    def place(value: float) -> str:
        return f"{STRIP_EDGE + (STRIP_WIDTH - 2 * STRIP_EDGE) * (value - low) / (high - low):.1f}"

    middle, drawn, said = STRIP_HEIGHT / 2, [], [f"{name}: {row['value']:.4g}"]
    if row["low"] is not None:
        drawn.append(_line(place(row["low"]), place(row["high"]), (middle, middle), "var(--series-1)"))
        said.append(f"interval {row['low']:.4g} to {row['high']:.4g}")
    if row["floor"] is not None:
        drawn.append(
            _line(place(row["floor"]), place(row["floor"]), (2, STRIP_HEIGHT - 2), "var(--series-2)")
        )
        said.append(f"between real clips {row['floor']:.4g}")
    drawn.append(element("circle", cx=place(row["value"]), cy=middle, r=4, fill="var(--series-1)"))
    size = {"width": STRIP_WIDTH, "height": STRIP_HEIGHT}
    return element(
        "svg",
        drawn,
        **size,
        viewBox=f"0 0 {STRIP_WIDTH} {STRIP_HEIGHT}",
        role="img",
        aria_label=", ".join(said),
    )


def beside(reconstruction: dict, stream: str) -> str:
    """The measured numbers of simple codes, to compare with MDSA's: `mean colour 16.26 dB, ...`.

    stream: picture or sound.
    """
    values = [(words, reconstruction.get(key)) for words, key in BESIDE[stream]]
    return ", ".join(f"{words} {value:.2f} dB" for words, value in values if value is not None)


def _line(start: str, end: str, heights: Sequence[float], colour: str) -> Markup:
    """An SVG line in `colour` from x `start` to x `end`; `heights` are the y of both ends."""
    return element("line", x1=start, x2=end, y1=heights[0], y2=heights[1], stroke=colour, stroke_width=2.5)


def shown_name(metric: str) -> str:
    """A metric's key for people: established names stay, other keys become words with their unit."""
    if metric in NAMES:
        return NAMES[metric]
    if any(letter.isupper() for letter in metric) or metric in ACRONYMS:
        return metric if metric not in ACRONYMS else ACRONYMS[metric]
    words, unit = metric_name(metric)
    return f"{words}, {unit}" if unit else words


def values_text(values: dict[str, int]) -> str:
    """How many numbers a method stores: per stream, or for both streams if they differ."""
    if values["video"] == values["audio"]:
        return f"{values['video']:,} numbers a stream"
    return f"{values['video']:,} numbers of the picture and {values['audio']:,} of the sound"
