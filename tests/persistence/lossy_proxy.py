"""A TCP proxy in front of PostgreSQL that can pass a statement on and swallow its answer."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class LossyProxy:
    """Forwards both ways; after `swallow_next(word)` the statement with that word reaches the
    server, its answer does not come back, and the client's connection is cut.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._target = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{address.port}/", f":{self._listener.getsockname()[1]}/")
        self._word = b""

    def swallow_next(self, word: bytes) -> None:
        """Cut the client off behind the next statement that holds this word."""
        self._word = word

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            state = {"cut": False}
            threading.Thread(target=self._upward, args=(client, server, state), daemon=True).start()
            threading.Thread(target=self._downward, args=(client, server, state), daemon=True).start()

    def _upward(self, client: socket.socket, server: socket.socket, state: dict[str, bool]) -> None:
        while data := _receive(client):
            if self._word and self._word in data:
                self._word = b""
                state["cut"] = True
            server.sendall(data)
        server.close()

    def _downward(self, client: socket.socket, server: socket.socket, state: dict[str, bool]) -> None:
        while data := _receive(server):
            if state["cut"]:
                break
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)
        client.close()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65_536)
    except OSError:
        return b""
