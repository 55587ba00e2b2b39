"""The built-in tokens of a keeper are those of their files, as long as those are valid."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StartError
from gateway.run.admin_process import AdminProcess
from gateway.run.administration import AdminPort
from gateway.settings.settings import load
from tests.run.test_reload import changed_in_place, replaced
from tests.waiting import eventually

OLD, NEW, READER = "an-old-admin-token", "a-new-admin-token!", "a-reader-of-things"


async def test_tokens_are_read_again_and_a_wrong_file_keeps_both(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    admin, reader = tmp_path / "admin", tmp_path / "reader"
    admin.write_text(OLD)
    reader.write_text(READER)
    environ = {"TOLLKEEPER_ADMIN_TOKEN_FILE": str(admin), "TOLLKEEPER_READONLY_TOKEN_FILE": str(reader)}

    def told(why: str) -> bool:
        return why in str(said[-1])

    port = AdminPort(load(environ), lambda event, **facts: said.append((event, facts)), look_s=0.01)
    running = asyncio.create_task(port.run())
    replaced(admin, NEW.encode())
    await eventually(lambda: port.built_in.admin == NEW)
    assert said == [("token read again from its file", {"setting": "admin_token"})]
    for wrong, why in (
        ("short", "is not valid: expected 16 to 512"),
        (READER, "both are the same"),
        ("", "is empty"),
    ):
        replaced(admin, wrong.encode())
        await eventually(partial(told, why))
        assert (port.built_in.admin, port.built_in.readonly) == (NEW, READER)
    assert NEW not in str(said)
    assert OLD not in repr(port.built_in)
    running.cancel()


async def test_a_file_that_could_not_be_read_is_tried_again_though_it_looks_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "admin"
    file.write_text(OLD)
    port = AdminPort(
        load({"TOLLKEEPER_ADMIN_TOKEN_FILE": str(file)}),
        lambda event, **facts: said.append(event),
        look_s=0.01,
    )
    running = asyncio.create_task(port.run())
    changed_in_place(file, b"two\nlines".ljust(len(NEW), b"."), seen=True)
    await eventually(lambda: said == ["tokens are kept as they were"])
    changed_in_place(file, NEW.encode(), seen=False)
    await eventually(lambda: port.built_in.admin == NEW)
    assert said == ["tokens are kept as they were", "token read again from its file"]
    running.cancel()


async def test_a_port_that_is_taken_is_named() -> None:
    unused: Any = None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = load({"TOLLKEEPER_ADMIN_PORT": str(number)})
        said = rf"port {number} on 127.0.0.1 is in use; choose another .*TOLLKEEPER_ADMIN_PORT"
        with pytest.raises(StartError, match=said):
            await AdminProcess(settings, unused, unused, left_s_max=0.0).begin()


@pytest.mark.parametrize("environ", [{}, {"TOLLKEEPER_ADMIN_TOKEN": OLD}])
def test_without_files_they_are_what_settings_say(environ: dict[str, str]) -> None:
    port = AdminPort(load(environ), lambda event, **facts: None)
    assert port.built_in.admin == (OLD if environ else None)
    assert port.built_in.readonly is None
