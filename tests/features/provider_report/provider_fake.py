"""The vendors' APIs of usage and costs on loopback: pages, and whatever failures are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]


class Vendor(ThreadingHTTPServer):
    """What it answers by path: pages in their order, each named by its place; `fails` come first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, list[list[Any]]] = {}
        self.fails: list[Answer] = []
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        if self.fails:
            return self.fails.pop(0)
        pages = self.pages.get(path, [[]])
        at = int(query.get("page", ["0"])[0].removeprefix("page-"))
        more = at + 1 < len(pages)
        page = {"data": pages[at], "has_more": more, "next_page": f"page-{at + 1}" if more else None}
        return 200, {}, json.dumps(page).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Vendor

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.server.asked.append((parts.path, query, {k.lower(): v for k, v in self.headers.items()}))
        status, headers, body = self.server.answer(parts.path, query)
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def vendor() -> Iterator[Vendor]:
    server = Vendor()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
