"""Reads, in the background, the context length of each model from an upstream's own list of models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from gateway.core.calls.routes import Route, UpstreamTarget, own_path, own_query
from gateway.core.network import Proxies
from gateway.http.ports import Log
from gateway.http.upstream.pool import Upstream, place_of

MODELS_BYTES_MAX: Final = 16 << 20
ANSWER_MAX_S: Final = 10.0
# The interval for reading a list again, and for retrying an upstream that gave none.
AGAIN_S: Final = 600.0
RETRY_S: Final = 10.0
LOOK_S: Final = 1.0
MODELS_MAX: Final = 10_000
PATH: Final = "/v1/models"
# The field with a model's context in the lists of vLLM and SGLang.
_CONTEXT: Final = "max_model_len"


async def ask_models(
    target: UpstreamTarget, path: str, fields: Mapping[str, str], within_s: float = ANSWER_MAX_S
) -> tuple[int, bytes]:
    """Request the list of models of an upstream; return status and body, or 0 and b"" without an answer."""
    from gateway.outbound.client import TooLarge, ask  # noqa: PLC0415  # heavy to load

    via = target.via
    proxies = Proxies(via, via, ca_file="" if via is None else via.ca_file)
    with suppress(OSError, TimeoutError, TooLarge):
        status, _, body = await ask(
            "GET", target.base_url + path, {**dict(target.headers), **fields}, None,
            proxies=lambda: proxies, context=place_of(target)["ssl"], connect_s=within_s, within_s=within_s,
            bytes_max=MODELS_BYTES_MAX,
        )  # fmt: skip
        return status, body
    return 0, b""


def contexts_in(document: bytes) -> dict[str, int]:
    """Return each model's context length in tokens by its id, from a list of models; skip models without."""
    try:
        said: Any = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    models = said.get("data") if isinstance(said, dict) else None
    return {
        model["id"]: model[_CONTEXT]
        for model in (models[:MODELS_MAX] if isinstance(models, list) else ())
        if isinstance(model, dict) and _has_context(model)
    }


def _has_context(model: Mapping[str, object]) -> bool:
    """Return whether a model of a list has an id, and a length that is a whole number over 0."""
    length = model.get(_CONTEXT)
    is_count = isinstance(length, int) and not isinstance(length, bool) and length > 0
    return is_count and isinstance(model.get("id"), str)


async def keep_listed(upstreams: Callable[[], Iterable[Upstream]], log: Log) -> None:
    """Read the model lists of these upstreams, each at intervals, until cancelled."""
    due: dict[Upstream, float] = {}
    while True:
        now = time.monotonic()
        there = [*upstreams()]
        due = {one: due.get(one, now) for one in there}
        for one in there:
            if due[one] <= now:
                due[one] = now + (AGAIN_S if await read_list(one, log) else RETRY_S)
        await asyncio.sleep(LOOK_S)


async def read_list(upstream: Upstream, log: Log) -> bool:
    """Store the models' context lengths from an upstream's list of models; return whether it has any."""
    target = upstream.target
    path = own_path(target, Route(("GET",), PATH, ""), PATH, "") + own_query(target, "")
    status, body = await ask_models(target, path, dict(target.keys[0]) if target.keys else {})
    contexts = contexts_in(body) if status == 200 else {}
    if contexts and contexts != upstream.contexts:
        log("upstream_contexts", upstream=upstream.name, models=len(contexts), context=max(contexts.values()))
        upstream.contexts = contexts
    return bool(contexts)
