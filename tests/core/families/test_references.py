"""Fields that end like an id: what each names is in a table. What changes a stored object is closed."""

from __future__ import annotations

import ast
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deploy.costs import members_of
from gateway.core.calls.call import Body, CallRequest, names_in
from gateway.core.families.anthropic import FAMILY as ANTHROPIC
from gateway.core.families.objects import read_objects
from gateway.core.families.openai import FAMILY as OPENAI
from gateway.core.families.references import PLACES
from gateway.core.families.registry import SHAPES
from gateway.core.http_limits import HttpLimits
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from gateway.http.protocol.request import RequestHead, read_request_head
from gateway.http.routing.routes import owned_by

# Headers that the SDK has among the fields of a body, and what is a part of a path.
NOT_IN_BODIES = frozenset({"betas", "workspace_id", "user_profile_id", "vault_id", "memory_store_id"})
# The request types of stored things, by the templates of their paths.
STORED = {
    "openai": {
        "vector_stores": "vector_store_create", "vector_stores/{}": "vector_store_update",
        "vector_stores/{}/search": "vector_store_search",
        "vector_stores/{}/files": "vector_stores/file_create",
        "vector_stores/{}/file_batches": "vector_stores/file_batch_create", "containers": "container_create",
        "uploads": "upload_create", "uploads/{}/complete": "upload_complete", "evals": "eval_create",
        "evals/{}": "eval_update", "evals/{}/runs": "evals/run_create", "batches": "batch_create",
        "fine_tuning/jobs": "fine_tuning/job_create", "conversations": "conversations/conversation_create",
        "conversations/{}": "conversations/conversation_update",
    },
    "anthropic": {
        "agents": "beta/agent_create", "agents/{}": "beta/agent_update",
        "environments": "beta/environment_create", "environments/{}": "beta/environment_update",
        "vaults": "beta/vault_create", "vaults/{}": "beta/vault_update",
        "vaults/{}/credentials": "beta/vaults/credential_create",
        "vaults/{}/credentials/{}": "beta/vaults/credential_update",
        "memory_stores": "beta/memory_store_create", "memory_stores/{}": "beta/memory_store_update",
        "memory_stores/{}/memories": "beta/memory_stores/memory_create",
        "memory_stores/{}/memories/{}": "beta/memory_stores/memory_update",
        "messages/batches": "messages/batch_create",
    },
}  # fmt: skip


def head_of(method: str, path: str) -> RequestHead:
    path = path.replace("{", "").replace("}", "")
    return read_request_head(f"{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode(), HttpLimits())


def types_of(sdk: str) -> Path:
    found = find_spec(sdk)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "types")


def fields_of(module: Path, name: str = "") -> Iterator[str]:
    """The fields of one class of a module, or of all."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef) and name in {"", node.name}:
            for one in node.body:
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    yield one.target.id


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("openai.types.responses.response_create_params", "ResponseCreateParamsBase"),
        ("openai.types.chat.completion_create_params", "CompletionCreateParamsBase"),
        ("openai.types.audio.speech_create_params", "SpeechCreateParams"),
        ("anthropic.types.beta.message_create_params", "MessageCreateParamsBase"),
    ],
)
def test_an_id_in_a_field_of_an_sdk_names_a_stored_object(module: str, name: str) -> None:
    fields = members_of(getattr(import_module(module), name))
    found = {name for name, hint in fields.items() if has_id(hint)}
    assert found
    assert found <= PLACES


def has_id(hint: Any, outside: tuple[Any, ...] = ()) -> bool:
    members = {} if hint in outside else members_of(hint)
    within = [*typing.get_args(hint), *members.values()]
    return "id" in members or any(has_id(one, (*outside, hint)) for one in within if one not in outside)


@pytest.mark.parametrize(
    ("sdk", "path", "module"),
    [(sdk, path, module) for sdk, paths in STORED.items() for path, module in paths.items()],
)
def test_a_stored_body_may_say_what_its_request_type_has(sdk: str, path: str, module: str) -> None:
    family = OPENAI if sdk == "openai" else ANTHROPIC
    name = "".join([word.title() for word in module.rpartition("/")[2].split("_")])
    said = set(fields_of(types_of(sdk) / f"{module}_params.py", f"{name}Params"))
    assert said
    taken = family.objects.takes[path]
    said -= NOT_IN_BODIES if sdk == "anthropic" else set()
    assert said <= taken
    assert taken - said <= {"trainingType"}, "Azure's"


@pytest.mark.parametrize("family", [OPENAI, ANTHROPIC])
def test_each_route_that_changes_a_stored_object_is_closed(family: Any) -> None:
    """Calls, actions without a body of their own and forms are none of these."""
    others = re.compile(
        "cancel$|pause$|resume$|archive$|parts$|/files$|/runs/{run}$|input_tokens$|count_tokens$|remix$"
    )
    for route in family.routes:
        shape = SHAPES.get(route.meter)
        if "POST" not in route.methods or others.search(route.path) or (shape and not shape.stores):
            continue
        owned = owned_by(head_of("POST", route.path), route)
        assert owned is not None
        assert owned.closed, route.path
        assert owned.takes, route.path


def test_of_routes_whose_objects_are_shared_only_what_counts_without_one_is_read() -> None:
    of_all = {route.path: owned_by(head_of("POST", route.path), replace(route, objects="shared"))
              for route in ANTHROPIC.routes if "POST" in route.methods}  # fmt: skip
    assert [path for path, owned in of_all.items() if owned is not None] == ["/v1/messages/count_tokens"]


def read(path: str, document: dict[str, Any]) -> tuple[str, ...]:
    route = next(one for one in OPENAI.routes if one.path == path and "POST" in one.methods)
    head: RequestHead = head_of("POST", path.replace("{id}", "mine"))
    owned = owned_by(head, route)
    assert owned is not None
    body = json.dumps(document).encode()
    call = CallRequest(route.meter, Family("openai"), Body(body, document=document, names=names_in(document)))
    read_objects(owned, call)
    return call.objects.named


EVALS, RUNS = "/v1/evals", "/v1/evals/{id}/runs"
FROM_FILE = {"type": "file_id", "id": "file-1"}
ROWS = {"type": "file_content", "content": [{"item": {"customer_id": "A-17"}, "sample": {"order_id": "x"}}]}


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        (EVALS, {"data_source_config": {"type": "stored_completions"}}, "data_source_config"),
        (EVALS, {"data_source_config": {"type": "logs", "metadata": {}}}, "data_source_config"),
        (EVALS, {"Data_Source_Config": {"type": "logs"}}, "Data_Source_Config"),
        (RUNS, {"data_source": {"type": "completions", "source": {"type": "stored_completions"}}}, "source"),
        (RUNS, {"data_source": {"type": "completions", "Source": {"type": "stored_completions"}}},
         "data_source.Source"),
        (RUNS, {"data_source": {"type": "responses", "source": {"type": "responses", "created_after": 0}}},
         "source"),
        (RUNS, {"data_source": {"type": "responses", "source": [{"type": "responses"}]}}, "source"),
        (RUNS, {"data_source": {"type": "tomorrows"}}, "data_source"),
        (RUNS, {"data_source": {"type": "jsonl", "source": {**FROM_FILE, "filter": {}}}}, "source.filter"),
        (RUNS, {"data_source": {"type": "jsonl", "source": FROM_FILE, "query": "x"}}, "data_source.query"),
        (RUNS, {"query": {"metadata": {}}}, "query"),
        ("/v1/vector_stores", {"name": "x", "source_project": "y"}, "source_project"),
    ],
)  # fmt: skip
def test_what_selects_by_anything_but_an_id_is_refused_by_its_name(
    path: str, document: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(path, document)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"data_source": {"type": "jsonl", "source": FROM_FILE}}, ("mine", "file-1")),
        ({"data_source": {"type": "completions", "model": "m", "source": ROWS,
                          "sampling_params": {"seed": 1}}}, ("mine",)),
    ],
)  # fmt: skip
def test_an_eval_has_its_data_from_files_and_from_its_own_rows(
    document: dict[str, Any], named: tuple[str, ...]
) -> None:
    assert read(RUNS, document) == named
