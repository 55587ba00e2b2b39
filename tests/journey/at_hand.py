"""The program kept loaded: one process forks a copy of itself for each command a page has."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

# What a shell finds as `tollkeeper`: it hands its words and its own streams over, and ends as the copy ended.
CLIENT = """#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({place!r})
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [len(asked).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(asked)
sys.exit(connection.recv(1)[0])
"""


def write_client(program: Path, place: Path) -> None:
    """Write the program that asks the one listening at `place`."""
    program.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)


def serve(place: str) -> None:
    """Fork a copy of this process for each command, until this one is ended."""
    from gateway.__main__ import main
    from gateway.cli.main import app

    assert app
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                os._exit(_run(connection, main))
            connection.close()


def _run(connection: socket.socket, main: object) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(65536)
    words, environ, directory = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    assert callable(main)
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    sys.stdout.flush()
    connection.send(bytes([code]))
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
