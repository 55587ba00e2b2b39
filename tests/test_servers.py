"""A PostgreSQL that stays between runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psycopg

from tests import servers
from tests.databases import make_database


def test_key_of_changes_with_the_schema_and_the_place(tmp_path: Path) -> None:
    keys = set()
    for place, sql in (("a", "one"), ("a", "two"), ("b", "two")):
        schema = tmp_path / place / "persistence" / "schema"
        schema.mkdir(parents=True, exist_ok=True)
        (schema / "tables.sql").write_text(sql)
        keys.add(servers.key_of(tmp_path / place))
    assert len(keys) == 3


def test_kept_leaves_a_server_of_another_key_and_one_whose_process_is_another(tmp_path: Path) -> None:
    state = tmp_path / "servers.json"
    assert servers.kept("k", state) is None
    state.write_text(json.dumps({"key": "k", "url": "postgresql://here", "pid": os.getpid()}))
    assert [servers.kept("k", state), servers.stop(state)] == [None, False]


def test_start_gives_the_same_server_again_until_stop(tmp_path: Path) -> None:
    state, key = tmp_path / "servers.json", servers.key_of(servers.ROOT)
    url = servers.start(state)
    try:
        assert [servers.start(state), servers.kept(key, state), servers.kept("k", state)] == [url, url, None]
        gone, here = "shared_4194304", f"shared_{os.getpid()}"  # no process has a number beyond 2 to the 22nd
        for name in (gone, here):
            make_database(url, name, servers.TEMPLATE)
        servers.drop_left(url)
        with psycopg.connect(url, autocommit=True) as admin:
            names = {name for (name,) in admin.execute("select datname from pg_database").fetchall()}
        assert names & {gone, here, servers.TEMPLATE} == {here, servers.TEMPLATE}
    finally:
        assert servers.stop(state)
    assert servers.kept(key, state) is None
