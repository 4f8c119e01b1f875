"""The page at /docs: the whole interface in one document, made from /openapi.json.

It has no scripts and needs no other host. The page that makes clips is in `page/`.
"""

from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1.25rem; }
h1 { font-weight: 600; } \
h2 { font: 600 1.05rem ui-monospace, monospace; margin: 2.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } \
pre { overflow-x: auto; padding: .9rem; border-radius: 8px; \
background: color-mix(in srgb, currentColor 7%, transparent); }
table { border-collapse: collapse; width: 100%; margin-top: .8rem; } \
td, th { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; }
tr { border-top: 1px solid color-mix(in srgb, currentColor 15%, transparent); } \
td:first-child { font-family: ui-monospace, monospace; }
"""
EXAMPLE = """curl {url}/v1/videos -H 'content-type: application/json' -d '{{"label": {label}, "seed": 1}}'
curl {url}/v1/videos/VIDEO_ID
curl {url}/v1/videos/VIDEO_ID/content -o clip.mp4"""


def api_page(schema: dict[str, Any], *, url: str, label: str) -> str:
    """The HTML of an OpenAPI schema.

    url: where the server is reached. label: one that its model knows, quoted as JSON.
    """
    parts = [f"<h1>{escape(schema['info']['title'])}</h1>"]
    parts.append(
        "<p>OpenAI's Videos interface with fields of proav's own. "
        "Every error is JSON: <code>{error: {message, type, param, code}}</code>. "
    )
    parts.append(
        'The schema for programs: <a href="/openapi.json">openapi.json</a>. '
        'The page to make clips: <a href="/">here</a>.</p>'
    )
    parts.append(f"<pre>{escape(EXAMPLE.format(url=url, label=label))}</pre>")
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts.append(
                f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(route.get('description', ''))}</p>"
            )
            if "requestBody" in route:
                parts.append(_fields_table(schema["components"]["schemas"]["VideoForm"]))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>proav: the interface</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _fields_table(schema: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(_kind(field))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    if field.get("format") == "binary":
        return "file"
    kinds = [choice.get("type", "object") for choice in field.get("anyOf", [field])]
    return " or ".join(kind for kind in kinds if kind != "null")
