"""Prompts and files of callers are kept nowhere: not in PostgreSQL, Redis, a file or a log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import redis

from tests import plain_http
from tests.journey.stack import Stack
from tests.waiting import wait_until

BYTES_AT_ONCE = 1 << 20


def _of_redis(stack: Stack) -> Iterator[bytes]:
    with redis.Redis.from_url(stack.redis_url) as client:
        for key in client.scan_iter(count=1_000):
            yield key + (client.dump(key) or b"")


def _of_files(stack: Stack) -> Iterator[bytes]:
    """Pieces of every file below the data directory, PostgreSQL's and Redis' own too, and of the log."""
    places = [path for path in Path(stack.data_dir).rglob("*") if path.is_file() and not path.is_symlink()]
    for path in (*places, stack.log):
        rest = b""
        try:
            with path.open("rb") as file:
                while piece := file.read(BYTES_AT_ONCE):
                    yield rest + piece
                    rest = piece[-64:]
        except FileNotFoundError:
            continue  # it went meanwhile


def found(stack: Stack, word: str) -> bool:
    said = word.encode()
    return any(said in piece for of in (_of_redis, _of_files) for piece in of(stack))


def test_prompts_answers_and_names_of_files_are_kept_nowhere(stack: Stack) -> None:
    prompt, name, note = (f"sentinel-{what}-{uuid4().hex}" for what in ("prompt", "file", "note"))
    metadata = f'{{"note":"{note}"}}'
    called = stack.chat(
        stack.api_key, messages=[{"role": "user", "content": prompt}], x_tollkeeper_metadata=metadata
    )
    assert called.status_code == 200
    refused = stack.chat("tk_wrong", messages=[{"role": "user", "content": prompt}])
    assert refused.status_code == 401
    sent = plain_http.post(
        f"{stack.gateway_url}/v1/audio/transcriptions",
        headers={"authorization": f"Bearer {stack.api_key}"},
        files={"file": (f"{name}.wav", os.urandom(64), "audio/wav")},
        data={"model": "whisper-1", "prompt": prompt},
    )
    assert sent.status_code < 500
    request_id = called.headers["x-request-id"]
    kept = f"SELECT metadata ->> 'note' FROM token_ledger WHERE request_id = '{request_id}'"
    assert wait_until(lambda: stack.rows(kept)) == [(note,)]
    # What a caller says of a call is kept with it, where the documentation says; so the search finds.
    assert found(stack, note)
    assert not found(stack, prompt)
    assert not found(stack, name)
