"""Each door of the SDKs that makes or lengthens what a provider bills by time has a row, and is judged by it.

The doors are routes that write, and members of the SDKs' parameters whose names say a time or a size. A newer SDK
that has another such member, and a route that is new, have no row, and this fails.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.calls.routes import Route
from gateway.core.calls.storage import STORED_UNITS
from gateway.core.families.objects import unit_later
from gateway.core.families.registry import FAMILIES, SHAPES

# What a door costs later: a unit, or one of these.
NOTHING = "nothing"  # what it stores is free
CALL = "call"  # the answer reports all that it costs
SAME = "same"  # a part of something that was paid, or judged, when it was made
# Routes of the families that write, but for calls of models, by their path after the version.
DOORS = {
    # OpenAI's files and answers are stored for nothing; days of stores and sessions of containers are billed.
    "files": NOTHING, "uploads": NOTHING, "uploads/{id}/parts": NOTHING, "uploads/{id}/complete": NOTHING,
    "uploads/{id}/cancel": NOTHING, "skills": NOTHING, "conversations": NOTHING, "conversations/{id}": NOTHING,
    "conversations/{id}/items": NOTHING, "chat/completions/{id}": NOTHING, "responses/input_tokens": NOTHING,
    "evals": NOTHING, "evals/{id}": NOTHING, "evals/{id}/runs": "eval_run", "evals/{id}/runs/{run}": SAME,
    "evals/{id}/runs/{run}/cancel": SAME, "fine_tuning/jobs": "fine_tuning_job",
    **{f"fine_tuning/jobs/{{id}}/{action}": SAME for action in ("cancel", "pause", "resume")},
    "vector_stores": "gigabyte_day", "vector_stores/{id}": "gigabyte_day", "vector_stores/{id}/files": "gigabyte_day",
    "vector_stores/{id}/file_batches": "gigabyte_day", "vector_stores/{id}/search": "file_search",
    "vector_stores/{id}/files/{file}": SAME, "vector_stores/{id}/file_batches/{batch}/cancel": SAME,
    # A container lives for 20 minutes after its last use, and its files are in its memory.
    "containers": "container", "containers/{id}/files": SAME,
    "batches": CALL, "batches/{id}/cancel": SAME, "batches/{id}:cancel": SAME, "responses/{id}/cancel": SAME,
    # Anthropic: only sessions of agents run, which have no route.
    "messages/count_tokens": NOTHING, "messages/batches": CALL, "messages/batches/{id}/cancel": SAME,
    # Google stores files for nothing, and bills their indexing (ai.google.dev/gemini-api/docs/file-search).
    "cachedContents": "cache_hour", "cachedContents/{id}": "cache_hour", "fileSearchStores": NOTHING,
    "fileSearchStores/{id}:importFile": "indexed_file", "files:register": NOTHING, "interactions/{id}/cancel": SAME,
}  # fmt: skip
AGENTS = re.compile(r"(agents|vaults|memory_stores|environments|files|skills)(/|\Z)")


def writing_routes() -> Iterator[tuple[str, Route]]:
    """Yield each route that writes and calls no model, with its path after the version."""
    for family in FAMILIES.values():
        for route in family.routes:
            shape = SHAPES.get(route.meter)
            path = re.sub(r"^/(?:upload/)?v\d\w*/", "", route.path)
            calls_model = shape is not None and not (shape.stores or shape.lasts)
            if not calls_model and not {"POST", "PUT", "PATCH"}.isdisjoint(route.methods):
                yield path, route


WRITING = [pair for pair in writing_routes() if pair[1].family in {"openai", "anthropic", "gemini"}]


@pytest.mark.parametrize(
    ("path", "route"), WRITING, ids=[f"{route.family} {path}" for path, route in WRITING]
)
def test_a_route_that_writes_costs_later_what_its_row_says(path: str, route: Route) -> None:
    if route.family == "anthropic" and path not in DOORS:
        assert AGENTS.match(path)
        row = NOTHING
    elif path.startswith("models/"):  # counting tokens, and batches of calls
        row = CALL if "batch" in path else NOTHING
    else:
        row = DOORS[path]
    unit = unit_later(route.family, route.path)
    if row in {NOTHING, CALL, SAME}:
        assert route.meter not in SHAPES
    else:
        assert unit == row
        assert unit in STORED_UNITS
        assert route.meter in SHAPES


# Members of parameters whose names say how long something is kept, or how large it is, by the end of their module's
# name: what judges them.
OF_CACHES = "tokens written to a cache, which the answer reports by lifetime"
OF_FILES = "files are stored for nothing, however long"
OF_SECRETS = "a credential, and nothing that is stored"
NO_ROUTE = "no route takes it"
LASTING = {
    "ttl": OF_CACHES, "prompt_cache_retention": OF_CACHES, "output_expires_after": OF_FILES,
    "expires_in_seconds": OF_FILES, "file_create_params.expires_after": OF_FILES,
    "upload_create_params.expires_after": OF_FILES, "expires_at": OF_SECRETS,
    "keep_old_secret_active_for_24_hours": NO_ROUTE, "desired_ttl_seconds": NO_ROUTE,
    "client_secret_create_params.expires_after": OF_SECRETS, "session_create_params.expires_after": OF_SECRETS,
    "session_update_event_param.expires_after": OF_SECRETS, "retention_ratio": NOTHING,
    "container_create_params.expires_after": "container", "container_create_params.memory_limit": "container",
    "container_create_params.minutes": "container", "vector_store_create_params.expires_after": "gigabyte_day",
    "vector_store_create_params.days": "gigabyte_day", "vector_store_update_params.expires_after": "gigabyte_day",
    "vector_store_update_params.days": "gigabyte_day",
    # Of tools: more than 1g is no usual container (`unpriced_tools`).
    "memory_limit": "container",
}  # fmt: skip
_NAMED = re.compile(
    r"^    (\w*(?:expire|ttl|memory_limit|retention|lifetime|keep_alive|hours|days|minutes)\w*)\s*:",
    re.MULTILINE,
)


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_each_member_that_says_how_long_something_is_kept_has_a_row(package: str) -> None:
    types = Path(importlib.import_module(f"{package}.types").__file__ or "").parent
    found = {
        f"{file.stem}.{member}"
        for file in types.rglob("*_param*.py")
        if "admin" not in file.parts and "organization" not in file.parts
        for member in _NAMED.findall(file.read_text(encoding="utf-8"))
    }
    assert found
    assert [name for name in sorted(found) if not {name, name.rpartition(".")[2]} & LASTING.keys()] == []
