"""Templates and static files: the only place that knows Jinja.

Everything a page shows passes through autoescaping, and characters nobody sees are escaped too; nothing
is ever marked as safe.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from gateway.admin.console import budget_use, shown
from gateway.admin.console.forms import EXAMPLES
from gateway.admin.resources.fields import words
from gateway.core.visible import visible

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
IMMUTABLE = "public, max-age=31536000, immutable"


class Assets:
    """The static files, under an address that changes with any of them."""

    def __init__(self) -> None:
        folder = files("gateway.admin.console") / "static"
        self._files = {
            entry.name: entry.read_bytes()
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
            if entry.name.rpartition(".")[2] in TYPES
        }
        mark = sha256()
        for name, body in self._files.items():
            mark.update(name.encode() + b"\0" + body)
        self.mark = mark.hexdigest()[:12]

    def address(self, name: str) -> str:
        """Where a file is."""
        assert name in self._files, name
        return f"/static/{self.mark}/{name}"

    async def serve(self, request: web.Request) -> web.Response:
        """`GET /static/<mark>/<name>`: kept by browsers for ever, because its address changes."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        kept = IMMUTABLE if request.match_info["mark"] == self.mark else "no-store"
        return web.Response(
            body=self._files[name],
            content_type=TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers={"Cache-Control": kept},
        )


class Pages:
    """Makes answers of templates."""

    def __init__(self, assets: Assets, *, version: str) -> None:
        self._environment = Environment(
            loader=PackageLoader("gateway.admin.console", "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            finalize=_seen,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(asset=assets.address, version=version, examples=EXAMPLES)
        self._environment.filters.update(
            number=shown.number, short=shown.short, money=shown.money, moment=shown.moment, day=shown.day,
            money_parts=shown.money_parts, about=shown.about, plain=shown.plain, minute=shown.minute,
            span=shown.span, limits=shown.limits, document=shown.document, words=words, tone=shown.tone,
            limit_of=budget_use.limit_said,
        )  # fmt: skip

    def answer(self, template: str, status: int = 200, **facts: Any) -> web.Response:
        """Render a template as an HTML answer."""
        text = self._environment.get_template(template).render(**facts)
        return web.Response(
            status=status,
            text=text,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": CSP},
        )


def _seen(value: object) -> object:
    """What an expression of a template shows; what is a part of the page already stays."""
    return visible(value) if type(value) is str else value
