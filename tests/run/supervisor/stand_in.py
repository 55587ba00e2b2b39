"""A stand-in for gateway worker and keeper: small HTTP servers that answer what `up` asks.

The supervisor knows neither by name, so its own behaviour is tested with these; what the real
ones do is tested with the real ones. Run as `stand_in.py gateway|keeper`; settings come as
JSON on standard input, as those get them. Starts and stops are appended to a log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import threading

from gateway.local import heartbeat, ports

ids = itertools.count(1)


def note(path: str, word: str) -> None:
    with open(path, "a") as file:
        file.write(f"{word} {os.getpid()}\n")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        writer.close()
        return
    fields = dict(line.lower().split(": ", 1) for line in head.strip().split("\r\n")[1:])
    content = json.loads(await reader.readexactly(int(fields.get("content-length", "0"))) or b"{}")
    if head.startswith("POST"):
        made = {**content, "id": next(ids)}
        if "api-keys" in head.split()[1]:
            made["key"] = "tk_stand_in"
        status, body = 201, made
    elif head.split()[1].startswith("/services/"):
        status, body = 404, {}
    elif head.split()[1].startswith("/.tollkeeper/"):
        status, body = (200 if "tk_stand_in" in fields.get("authorization", "") else 401), {}
    else:
        status, body = 200, {"items": [{"id": 1, "name": "Subscription", "key": "echo"}]}
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data
    )
    await writer.drain()
    writer.close()


async def serve(role: str) -> None:
    settings = json.loads(sys.stdin.buffer.readline())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent_pipe() -> None:
        while os.read(0, 1024):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=parent_pipe, daemon=True).start()
    log, port = settings["data_dir"] + "/stand_in.log", "gateway_port" if role == "gateway" else "admin_port"
    own, _ = ports.supervisor_port()
    if own:
        server = await asyncio.start_server(answer, sock=own[0])
    else:
        server = await asyncio.start_server(answer, "127.0.0.1", settings[port])
    heartbeat.say_ready()
    beating = asyncio.create_task(heartbeat.keep_beating())
    for name in ("database_url", "admin_token"):
        if settings[name]:
            note(log + ".told", f"{role} {name}")
    note(log, f"{role} started")
    await stop.wait()
    beating.cancel()
    server.close()
    note(log, f"{role} stopped")
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
