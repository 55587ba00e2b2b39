"""`/admin/docs`: the OpenAPI document as one plain page, made here, with nothing fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Any

from aiohttp import web

Json = dict[str, Any]  # JSON as OpenAPI has it: any shape

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}code,th{font-family:ui-monospace,monospace;font-size:.9em}"
    "h2{margin-top:3rem;border-bottom:1px solid #ccc}h3 code{font-size:1em}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;"
    "border-bottom:1px solid #eee;vertical-align:top}th{font-weight:600;white-space:nowrap}"
    "pre{font-size:.9em;overflow-x:auto}"
    "nav a{margin-right:1rem}.verb{display:inline-block;min-width:4.5rem;color:#0b5394}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}h2{border-color:#444}"
    "th,td{border-color:#333}.verb,a{color:#8ab4f8}}"
)

_STYLE_HASH = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


def mount_docs(app: web.Application, page: str) -> None:
    """Serve the page that was rendered."""

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": CSP})

    app.router.add_get("/admin/docs", docs)


def render(described: Json) -> str:
    """Write an OpenAPI document as HTML."""
    info, tags = described["info"], described["tags"]
    nav = "".join(f'<a href="#{escape(tag["name"])}">{escape(tag["name"])}</a>' for tag in tags)
    sections = "".join(_section(tag, described) for tag in tags)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        "<p>Send <code>Authorization: Bearer &lt;admin token&gt;</code>. Machine-readable: "
        '<a href="/admin/v1/openapi.json">openapi.json</a>.</p>'
        f"<nav>{nav}</nav>{sections}</body></html>"
    )


def _section(tag: Json, described: Json) -> str:
    name = escape(tag["name"])
    operations = "".join(
        _operation(path, method, operation, described)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if method != "parameters" and tag["name"] in operation["tags"]
    )
    return f'<section><h2 id="{name}">{name}</h2><p>{escape(tag["description"])}</p>{operations}</section>'


def _operation(path: str, method: str, operation: Json, described: Json) -> str:
    head = (
        f'<h3><code><span class="verb">{method.upper()}</span> {escape(path)}</code></h3>'
        f"<p>{escape(operation['summary'])}. {escape(operation['description'])}</p>"
    )
    rows = [
        (parameter["name"], parameter["schema"], parameter.get("description", ""), False)
        for parameter in operation.get("parameters", ())
    ]
    rows += _body_rows(operation, described)
    shown = "".join(
        f"<details><summary>{word}</summary><pre>{escape(text)}</pre></details>"
        for word, text in _examples(operation)
    )
    if not rows:
        return head + shown
    cells = "".join(
        f"<tr><th>{escape(name)}{'*' if required else ''}</th><td><code>{escape(type_of(schema))}</code></td>"
        f"<td>{escape(description)}</td></tr>"
        for name, schema, description, required in rows
    )
    return f"{head}<table>{cells}</table>{shown}"


def _examples(operation: Json) -> Iterator[tuple[str, str]]:
    """An example of the request and of the answer."""
    sent = operation.get("requestBody", {}).get("content", {})
    answered = {
        media: each
        for one in operation["responses"].values()
        for media, each in one.get("content", {}).items()
    }
    for word, content in (("Such as", sent), ("Answers such as", answered)):
        example = content.get("application/json", {}).get("example")
        if example is not None:
            yield word, json.dumps(example, indent=2, ensure_ascii=False)


def _body_rows(operation: Json, described: Json) -> list[tuple[str, Json, str, bool]]:
    if "requestBody" not in operation:
        return []
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    model = described["components"]["schemas"][reference.rpartition("/")[2]]
    required = model.get("required", ())
    return [
        (name, schema, schema.get("description", ""), name in required)
        for name, schema in model.get("properties", {}).items()
    ]


def type_of(schema: Json) -> str:
    """Say a schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(type_of(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2]).removesuffix("In").lower()
    if "enum" in schema:
        return " | ".join(str(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return str(schema.get("format") or (" or ".join(kind) if isinstance(kind, list) else kind))
