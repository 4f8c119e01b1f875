"""HTML pieces of the report pages: escaped elements, tables of numbers, players, and the page in one file.

Everything that is not `Markup` is escaped, so that a label or file name can never become code. Templates are
beside this file (page.html, page.css, page.js). Reports are ours, not the paper's. Drawings are in
`figures.py`, tables of an evaluation in `tables.py`.
"""

import base64
import hashlib
import math
import string
from collections.abc import Iterable
from html import escape
from importlib.resources import files

UNITS = {
    "db": "dB",
    "seconds": "s",
    "minutes": "min",
    "hz": "Hz",
    "bytes": "bytes",
    "percent": "%",
    "ms": "ms",
}
"""Units by the last word of a metric's key, and how each is written."""
ACRONYMS = {
    name: name.upper()
    for name in ("psnr", "ssim", "lpips", "fvd", "fad", "kvd", "kid", "mdsa", "ema", "rms", "fps")
} | {"stdit": "ST-DiT", "distill": "Flow map"}
VOID_ELEMENTS = {"input", "img", "br", "hr", "meta", "link"}


class Markup(str):
    """Text that is HTML already; every other text is escaped when it enters an element."""


def render(child) -> str:
    """HTML of one child: Markup unchanged, None as nothing, lists item by item, everything else escaped."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, Iterable) and not isinstance(child, str):
        return "".join(render(item) for item in child)
    return escape(str(child), quote=True)


def element(name: str, *children, **attributes) -> Markup:
    """`<name attributes>children</name>`.

    `class_` becomes class, and `data_left` becomes data-left. An attribute that is True is written without a
    value; one that is None or False is left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escape(str(value), quote=True)}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in VOID_ELEMENTS else opening + render(children) + f"</{name}>")


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def section(identity: str, title: str, *children) -> Markup:
    return element(
        "section",
        element("h2", title, id=f"{identity}-title"),
        *children,
        id=identity,
        aria_labelledby=f"{identity}-title",
    )


def todo(what: str, command: str) -> Markup:
    """The line in a section without inputs: what is missing, and the command that makes it."""
    return element("p", what, " ", element("code", command), class_="todo")


def warning(text: str) -> Markup:
    return element("p", text, class_="warning", role="note")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A list of terms and values; pairs whose value is None are left out."""
    return element(
        "dl",
        [
            element("div", element("dt", term), element("dd", value))
            for term, value in pairs
            if value is not None
        ],
        class_="facts",
    )


def table(heads: list[str], rows: Iterable[Iterable], *, caption: str) -> Markup:
    """A table whose first column names the row; numbers are aligned to the right."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(is_number(row[column]) for row in rows) for column in range(len(heads))]
    head = element(
        "tr",
        [
            element("th", text, scope="col", class_="number" if numeric[i] else None)
            for i, text in enumerate(heads)
        ],
    )
    body = []
    for first, *rest in rows:
        cells = [
            element(
                "td",
                number(value) if is_number(value) else value,
                class_="number" if is_number(value) else None,
            )
            for value in rest
        ]
        body.append(element("tr", element("th", first, scope="row"), cells))
    whole = element("table", element("thead", head), element("tbody", body), aria_label=caption)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: float) -> str:
    """A number for people, with commas at thousands.

    Below 1,000 fractions have four significant digits, above it one decimal.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """`1 clip`, `2 clips`, `1,200 clips`."""
    return f"{number(count)} {noun if count == 1 else nouns or noun + 's'}"


def metric_name(key: str) -> tuple[str, str]:
    """Words and unit of a key: psnr_mean_colour_db -> ("PSNR mean colour", "dB").

    A dotted key is a setting's name and stays as it is.
    """
    if "." in str(key):
        return str(key), ""
    words = str(key).split("_")
    unit = UNITS[words.pop()] if len(words) > 1 and words[-1] in UNITS else ""
    words = [ACRONYMS.get(word, word) for word in words]
    return (words[0][:1].upper() + words[0][1:] + "".join(f" {word}" for word in words[1:]), unit)


def metrics_card(title: str, values, *, level: int = 3, wide: bool = False) -> Markup:
    """A card with every number and text of a nested dict.

    `protocol` and other long texts are below the numbers.

    title: heading.
    values: the dict, or a single value.
    level: level of the heading; above 3, the result is a part of another card.
    wide: the card takes the whole width of the page.
    """
    if not isinstance(values, dict):
        values = {title: values}
    rows, texts, inner = [], [], []
    for key, value in values.items():
        name, unit = metric_name(key)
        label = [name, element("span", f" {unit}", class_="unit") if unit else None]
        if isinstance(value, dict):
            inner.append(metrics_card(name, value, level=level + 1))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            heads = list(dict.fromkeys(head for item in value for head in item))
            cells = [[item.get(head, "") for head in heads] for item in value]
            inner += [
                element("h4", name),
                table([" ".join(metric_name(head)).strip() for head in heads], cells, caption=name),
            ]
        elif is_number(value):
            rows.append(
                element(
                    "tr", element("th", label, scope="row"), element("td", number(value), class_="number")
                )
            )
        else:
            items = (value or ["none"]) if isinstance(value, list) else ["none" if value is None else value]
            text = ", ".join(number(item) if is_number(item) else str(item) for item in items)
            if len(text) <= 24 and key != "protocol":
                rows.append(
                    element("tr", element("th", label, scope="row"), element("td", text, class_="number"))
                )
            else:
                texts.append(
                    element(
                        "p",
                        None if key == "protocol" else element("strong", f"{name}: "),
                        text,
                        class_="protocol",
                    )
                )
    heading = element("h3" if level == 3 else "h4", title)
    content = [
        heading,
        element("table", element("tbody", rows), aria_label=title) if rows else None,
        inner,
        texts,
    ]
    if level > 3:
        return element("div", content)
    wide = wide or any(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in values.values()
    )
    return element(
        "div", element("div", content, class_="text"), class_="card metric wide" if wide else "card metric"
    )


def player(video: bytes, strip: Markup | None, *, description: str, pixel_width: int) -> list[Markup]:
    """A looping video with its strip of frames and spectrogram.

    video: an MP4 file's bytes.
    strip: its strip; None: none.
    description: text alternative.
    pixel_width: columns of the video; clips of few pixels are enlarged without smoothing.
    """
    tag = element(
        "video",
        "This browser cannot play H.264 video.",
        src=data_uri(video, "video/mp4"),
        controls=True,
        loop=True,
        playsinline=True,
        preload="auto",
        class_="pixels" if pixel_width < 160 else None,
        aria_label=description,
    )
    return [tag, strip] if strip else [tag]


def build_page(title: str, header: list[Markup], sections: list[tuple[str, str, list]]) -> str:
    """The whole HTML file; `sections` are (id, title, children).

    The page fetches nothing: a content policy forbids it.
    """
    folder = files("proav.reports.kit")
    style, script, template = (
        (folder / name).read_text("utf-8") for name in ("page.css", "page.js", "page.html")
    )
    links = [element("li", element("a", name, href=f"#{identity}")) for identity, name, _ in sections]
    navigation = element("nav", element("ul", links), aria_label="Sections")
    main = element(
        "main", [section(identity, name, children) for identity, name, children in sections], id="content"
    )
    promise = (
        "Written by proav. Everything on this page, videos included, is in this one file: "
        "it opens without a network."
    )
    footer = element("footer", element("p", promise))
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode(
        "ascii"
    )
    body = element("header", header, navigation) + "\n" + main + "\n" + footer
    return string.Template(template).substitute(
        title=escape(title), style=style, script=script, script_hash=script_hash, body=body
    )
