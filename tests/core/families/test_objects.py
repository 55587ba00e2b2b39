"""Which stored objects a request names, and which an answer tells of."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.call import Body, CallRequest, names_in
from gateway.core.families.controlled import elements
from gateway.core.families.family import ID_CHARACTERS_MAX
from gateway.core.families.objects import (
    NAMED_MAX,
    ObjectAccess,
    ObjectPath,
    field_of,
    places_of,
    read_created_ids,
    read_objects,
)
from gateway.core.families.registry import FAMILIES, SHAPES
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from gateway.errors import InvalidRequest


def names(family: Family, document: dict[str, Any]) -> tuple[str, ...]:
    return named_by(family, document).objects.named


def named_by(family: Family, document: dict[str, Any]) -> CallRequest:
    body = json.dumps(document, separators=(",", ":")).encode()
    call = CallRequest("none", family, Body(body, document=document, names=names_in(document)))
    call.body.tools, call.body.plugins = tools_of(document), elements(document, "plugins")
    read_objects(ObjectAccess((), None), call)
    return call


CALLED = {"name": "look", "arguments": '{"file_id":"x"}'}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"previous_response_id": "resp_1"}, ("resp_1",)),
        ({"google": {"cached_content": "cachedContents/1"}}, ("cachedContents/1",)),
        ({"extra_body": {"google": {"cachedContent": "projects/p/locations/us/cachedContents/1"}}}, ("cachedContents/1",)),
        ({"conversation": "conv_1"}, ("conv_1",)),
        ({"conversation": {"id": "conv_1"}}, ("conv_1",)),
        ({"prompt": {"id": "pmpt_1", "variables": {"file_id": "mine"}}}, ("pmpt_1",)),
        ({"prompt": {"id": "pmpt_1", "variables": {"doc": {"type": "input_file", "file_id": "file-1"}}}},
         ("pmpt_1", "file-1")),
        ({"type": "tool_use", "input": [{"type": "item_reference", "id": "msg_1"}]}, ("msg_1",)),
        ({"Previous_Response_Id": "resp_1"}, ("resp_1",)),
        ({"PREVIOUS_RESPONSE_ID": "resp_1", "CONVERSATION": "conv_1"}, ("resp_1", "conv_1")),
        ({"tools": [{"type": "code_interpreter", "Container": "cntr_1"}]}, ("cntr_1",)),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, ("ig_1",)),
        ({"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}, ()),
        ({"input": [{"type": "file_search_call", "id": "fs_1", "queries": ["x"], "results": None}]}, ()),
        ({"input": [{"type": "mcp_call", "id": "mcp_1", "name": "look", "arguments": "{}"}]}, ()),
        ({"input": [{"type": "code_interpreter_call", "id": "ci_1", "status": "completed",
                     "container_id": "cntr_1"}]}, ("cntr_1",)),
        ({"input": [{"type": "tool_search_call", "id": "ts_1", "arguments": {"query": "x"}}]}, ()),
        ({"input": [{"type": "computer_call", "id": "cu_1", "call_id": "c", "action": {"type": "wait"},
                     "pending_safety_checks": [{"id": "cu_sc_1"}]}]}, ()),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": {},
                     "acknowledged_safety_checks": [{"id": "cu_sc_1"}]}]}, ()),
        ({"input": [{"type": "message", "acknowledged_safety_checks": [{"id": "x_1"}]}]}, ()),
        ({"input": [{"type": "message", "parts": [{"type": "new_reference", "id": "x_1"}]}]}, ("x_1",)),
        # Of OpenRouter and LiteLLM, which ask for them back.
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_details": [
            {"type": "reasoning.encrypted", "id": "rs_1", "data": "g"}]}]}, ()),
        ({"messages": [{"role": "assistant", "content": "x", "provider_specific_fields": {"id": "x_1"}}]}, ()),
        ({"tools": [{"type": "shell", "environment": {"skills": [{"skill_id": "openai-slides"}]}}]}, ()),
        ({"tools": [{"environment": {"skills": [{"skill_id": "openai-x", "Skill_Id": "skill_1"}]}}]},
         ("skill_1",)),
        ({"tools": [{"type": "function", "input_examples": [{"order_id": "A-17"}]}]}, ()),
        ({"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "arguments": "{}",
                     "caller": {"type": "program", "caller_id": "call_1"}}]}, ()),
        ({"input": [{"type": "image_generation_call", "id": "ig_1", "content": "x"}]}, ("ig_1",)),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, ("rs_1",)),
        ({"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "g"}]}, ()),
        ({"input": [{"type": "message", "id": "msg_1", "role": "user", "content": "x"}]}, ()),
        ({"input": [{"id": "msg_1", "role": "user", "content": "x"}]}, ()),
        ({"input": [{"id": "msg_1", "role": "user", "content": None}]}, ("msg_1",)),
        ({"input": [{"id": "msg_1", "status": None}]}, ("msg_1",)),
        ({"input": [{"type": "item_reference", "id": "msg_1", "": 1}]}, ("msg_1",)),
        ({"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": ""}]}, ("rs_1",)),
        ({"input": [{"type": "message", "id": "msg_1", "role": "user", "content": 1}]}, ("msg_1",)),
        ({"input": [{"id": "msg_1", "content": "x"}]}, ("msg_1",)),
        ({"Input": [{"type": "message", "id": "msg_1", "role": "user", "content": "x"}]}, ("msg_1",)),
        ({"messages": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "g"}]}, ("rs_1",)),
        ({"messages": [{"content": [{"type": "tool_use", "id": "toolu_1", "input": {}}]}]}, ()),
        ({"input": [{"type": ["message"], "ID": "msg_1", "content": "x"}]}, ("msg_1",)),
        ({"input": [{"type": {}, "id": "msg_1"}], "file_id": None}, ("msg_1",)),
        ({"input": [{"type": "mcp_approval_response", "approval_request_id": "mcpr_1"}]}, ("mcpr_1",)),
        ({"input": [{"type": "function_call", "id": "fc_1", "call_id": "c", "arguments": "{}"}]}, ()),
        ({"input": [{"type": "function_call", "id": "fc_1", "call_id": "c"}]}, ("fc_1",)),
        ({"input": [{"type": "something_new", "id": "new_1"}], "new_object_id": "new_2"}, ("new_1",)),
        ({"tools": [{"environment": {"skills": [{"type": "anthropic", "skill_id": "skill_1"}]}}]},
         ("skill_1",)),
        ({"input": [{"content": [{"type": "input_file", "filename": "a.pdf", "file_data": "x"}]}]}, ()),
        ({"tools": [{"type": "mcp", "connector_id": "connector_gmail"}], "request_id": "mine"}, ()),
        ({"prompt": "a text prompt of completions"}, ()),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ("msg_1",)),
        ({"input": [{"id": "msg_1"}, {"id": "msg_2", "type": None}]}, ("msg_1", "msg_2")),
        ({"input": [{"type": "message", "content": [{"file_id": "file-1"}]}]}, ("file-1",)),
        ({"input": [{"content": [{"type": "input_image", "file_id": "file-1"}]}]}, ("file-1",)),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1", "vs_2"]}]}, ("vs_1", "vs_2")),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, ("cntr_1",)),
        ({"tools": [{"type": "namespace", "container": "cntr_1", "tools": [{"file_ids": ["file-1"]}]}]},
         ("cntr_1", "file-1")),
        ({"input": [{"type": "additional_tools", "tools": [{"vector_store_ids": ["vs_1"]}]}]}, ("vs_1",)),
        (
            {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]},
            ("file-1",),
        ),
        ({"tools": [{"input_image_mask": {"file_id": "file-1"}}]}, ("file-1",)),
        ({"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}, ("file-1",)),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, ("audio_1",)),
        ({"audio": {"voice": "alloy", "format": "wav"}}, ()),
        ({"metadata": {"conversation_id": "mine", "file_id": "mine"}}, ()),
        ({"client_metadata": {"thread_id": "mine", "turn_id": "mine", "session_id": "mine"}}, ()),
        ({"tools": [{"parameters": {"properties": {"file_id": {"default": "x"}}, "file_id": "x"}}]}, ()),
        ({"messages": [{"tool_calls": [{"id": "call_1", "type": "function", "function": CALLED}]}]}, ()),
        ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}, ()),
        ({"plugins": [{"id": "web", "max_results": 3}]}, ()),
        ({"plugins": [{"id": "file-parser", "file_id": "file-1"}]}, ("file-1",)),
        ({"input_file_id": "file-1", "endpoint": "/v1/responses"}, ("file-1",)),
    ],
)  # fmt: skip
def test_what_a_body_of_openai_names(document: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert names(Family("openai"), document) == expected


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({"litellm_session_id": "s", "litellm_trace_id": "t"},
         {"s": "litellm_session_id", "t": "litellm_trace_id"}),
        ({"trace": {"trace_id": "t", "parent_span_id": "p", "id": "i"}}, {"p": "trace.parent_span_id", "i": "trace.id"}),
        ({"session_params": {"id": "s", "rid": "r"}, "id": "top", "ID": 5}, {"s": "session_params.id", "top": "id"}),
        ({"kv_transfer_params": {"remote_engine_id": "e", "remote_block_ids": [[1, 2], ["b"]]}},
         {"e": "kv_transfer_params.remote_engine_id", "b": "kv_transfer_params.remote_block_ids.1.0"}),
        ({"user_profile_id": None, "adapter_id": ["a", {"x": 1}], "Span_ID": "s"},
         {"a": "adapter_id.0", "s": "Span_ID"}),
        ({"session_id": "s", "trace_id": "t", "user_id": "u", "request_id": "r"}, {}),
        ({"messages": [{"content": [{"type": "thing", "thing_id": "t"}]}]},
         {"t": "messages.0.content.0.thing_id"}),
        ({"fileId": "f", "sessionId": "s", "traceIds": ["t"]}, {"f": "fileId", "t": "traceIds.0"}),
        ({"messages": [{"reasoning_details": [{"type": "reasoning.encrypted", "id": "rs_1", "data": "g"}]}]},
         {"rs_1": "messages.0.reasoning_details.0.id"}),
    ],
)  # fmt: skip
def test_a_text_in_a_field_that_no_table_has_is_judged_by_its_value(
    document: dict[str, Any], fields: dict[str, str]
) -> None:
    call = named_by(Family("openai"), document)
    assert (call.objects.named, {id_: field_of(call, id_) for id_ in call.objects.unsure}) == ((), fields)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"foo_id": "x_1"}, "foo_id"), ({"foo_ids": ["x_1"]}, "foo_ids.0"), ({"id": "x_1"}, "id"),
        ({"thing": {"cache_id": "x_1"}}, "thing.cache_id"), ({"foo_id": " x_1\t"}, "foo_id"),
        ({"foo_id": {"value": ["x_1"]}}, "foo_id.value.0"), ({"foo-id": "x_1"}, "foo-id"),
        ({"foo_uuid": "x_1"}, "foo_uuid"), ({"fooUUID": "x_1"}, "fooUUID"), ({"fooID": "x_1"}, "fooID"),
        ({"thing": [{"more": {"ID": "x_1"}}]}, "thing.0.more.ID"),
        ({"messages": [{"content": [{"Foo_Id": "x_1"}]}]}, "messages.0.content.0.Foo_Id"),
        ({"messages": [{"content": [{"foo-uuid": "x_1"}]}]}, "messages.0.content.0.foo-uuid"),
        ({"contents": [{"parts": [{"thing": {"foo_ids": [["x_1"]]}}]}]},
         "contents.0.parts.0.thing.foo_ids.0.0"),
    ],
)  # fmt: skip
def test_each_family_judges_a_text_in_a_field_that_no_table_has(
    family: Family, document: dict[str, Any], field: str
) -> None:
    call = named_by(family, document)
    assert (call.objects.named, {field_of(call, id_) for id_ in call.objects.unsure}) == ((), {field})
    assert "x_1" in call.objects.unsure


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_judges_what_callers_and_calls_of_tools_have_for_an_id(family: Family) -> None:
    called = [{"id": "c_1", "type": "function", "function": CALLED}]
    blocks = [{"type": "tool_use", "id": "c_2", "name": "look", "input": {}}, {"tool_use_id": "c_2"}]
    parts = [{"functionCall": {"id": "c_3", "name": "look", "args": {"order_id": "A"}}},
             {"function_response": {"id": "c_3", "name": "look", "response": {"id": "A"}}}]  # fmt: skip
    document: dict[str, Any] = {"session_id": "s", "user_id": "u", "messages": [
        {"role": "assistant", "tool_calls": called}, {"tool_call_id": "c_1"}, {"content": blocks}]}  # fmt: skip
    assert (named_by(family, document).objects.named, named_by(family, document).objects.unsure) == ((), ())
    if family == "gemini":
        assert named_by(family, {"contents": [{"parts": parts}]}).objects.unsure == ()


def test_the_id_of_a_message_of_mcp_numbers_it() -> None:
    message = {"jsonrpc": "2.0", "id": "7", "method": "tools/call", "params": {"arguments": {"id": "A"}}}
    assert named_by(Family("mcp"), message).objects.unsure == ()
    assert named_by(Family("mcp"), {**message, "params": {"id": "x_1"}}).objects.unsure == ("x_1",)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("cachedContents/c1", {"cachedContents/c1"}),
        ("https://generativelanguage.googleapis.com/v1beta/cachedContents/c1", {"cachedContents/c1"}),
        ("files/mine/cachedContents/c1", {"files/mine", "cachedContents/c1"}),
        ("abc", {"abc", "interactions/abc"}),
    ],
)
def test_a_text_of_gemini_is_judged_as_each_name_that_it_may_stand_for(text: str, ids: set[str]) -> None:
    assert set(named_by(Family("gemini"), {"foo_id": text}).objects.unsure) == ids


def test_a_text_that_a_table_names_once_is_judged_by_the_table() -> None:
    call = named_by(Family("openai"), {"file_id": "file-1", "thing_id": "file-1"})
    assert (call.objects.named, call.objects.unsure) == (("file-1",), ())


def test_texts_that_may_be_ids_are_bounded_with_those_that_are() -> None:
    document: dict[str, Any] = {"file_ids": [f"f{n}" for n in range(NAMED_MAX - 1)], "thing_ids": ["t"]}
    assert len(names(Family("openai"), document)) == NAMED_MAX - 1
    document["thing_ids"] = ["t", "u"]
    with pytest.raises(InvalidRequest):
        names(Family("openai"), document)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"container": "container_1"}, ("container_1",)),
        ({"container": {"id": "container_1", "skills": [{"type": "custom", "skill_id": "skill_1"}]}},
         ("container_1", "skill_1")),
        ({"container": {"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}}, ()),
        ({"multiagent": {"type": "coordinator", "agents": ["agent_1", {"type": "agent", "id": "agent_2"},
                                                            {"type": "self"}]}}, ("agent_1",)),
        ({"multiagent": {"subagents": {"type": "enabled", "predefined_agents": ["agent_1"]}}}, ("agent_1",)),
        ({"agent": "agent_1"}, ("agent_1",)),
        ({"messages": [{"content": [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}]},
         ("file_1",)),
        ({"messages": [{"content": [{"type": "container_upload", "file_id": "file_1"}]}]}, ("file_1",)),
        ({"messages": [{"content": [{"type": "tool_use", "id": "t", "input": {"file_id": "mine"}}]}]}, ()),
        ({"tools": [{"input_schema": {"properties": {"file_id": {"enum": ["x"]}}}}]}, ()),
        ({"metadata": {"user_id": "u"}}, ()),
        ({"messages": [{"content": [{"type": "server_tool_use", "id": "srvtoolu_2", "name": "web_search",
            "input": {}, "caller": {"type": "code_execution_20260120", "tool_id": "srvtoolu_1"}}]}]}, ()),
        ({"messages": [{"content": [{"type": "tool_result", "tool_use_id": "t", "content": [
            {"type": "browser_state", "tabs": [{"tab_id": "7"}]}]}]}]}, ()),
        ({"tools": [{"name": "order", "input_schema": {}, "input_examples": [{"order_id": "A-17"}]}]}, ()),
        ({"diagnostics": {"previous_message_id": "msg_1"}}, ("msg_1",)),
        ({"diagnostics": {"previous_message_id": None}}, ()),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, ("msg_1",)),
    ],
)  # fmt: skip
def test_what_a_body_of_anthropic_names(document: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert names(Family("anthropic"), document) == expected


FILES = "https://generativelanguage.googleapis.com/v1beta/files/abc"
ODD_URLS = (
    "https://generativelanguage.googleapis.com./v1beta/%66iles/a",
    "https://x.com@generativelanguage.googleapis.com/v1beta/%66iles/a",
    "https:\\\\generativelanguage/%66iles/a",
    "//generativelanguage.googleapis.com/v1beta/%66iles/a", "https://generativelanguage.g%6fogleapis.com/Files/a",
    "https://generativelanguage.\uff47oogleapis.com/Files/a",
)  # fmt: skip


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"cachedContent": "cachedContents/c1"}, ("cachedContents/c1",)),
        ({"cached_content": "cachedContents/c1"}, ("cachedContents/c1",)),
        ({"cachedContent": "projects/p/locations/l/cachedContents/c1"}, ("cachedContents/c1",)),
        ({"cachedContent": "anything"}, ("anything",)),
        ({"CachedContent": "cachedContents/c1"}, ("cachedContents/c1",)),
        ({"generateContentRequest": {"cachedContent": "cachedContents/c1"}}, ("cachedContents/c1",)),
        ({"systemInstruction": {"parts": [{"fileData": {"fileUri": "files/abc"}}]}}, ("files/abc",)),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "http://[x"}}]}]}, ()),
        *[({"contents": [{"parts": [{"fileData": {"fileUri": url}}]}]}, (url,)) for url in ODD_URLS],
        ({"contents": [{"parts": [{"fileData": {"fileUri": FILES}}]}]}, ("files/abc",)),
        ({"contents": [{"parts": [{"file_data": {"file_uri": "files/abc"}}]}]}, ("files/abc",)),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "gs://bucket/x.png"}}]}]}, ("gs://bucket/x.png",)),
        ({"contents": [{"parts": [{"fileData": {"fileUri": FILES.replace("files", "fi%6ces")}}]}]},
         (FILES.replace("files", "fi%6ces"),)),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "https://www.youtube.com/watch?v=x"}}]}]}, ()),
        ({"tools": [{"fileSearch": {"fileSearchStoreNames": ["corpora/s"]}}]}, ("corpora/s",)),
        ({"contents": [{"parts": [{"functionResponse": {"response": {"fileUri": "x"}}}]}]}, ()),
        ({"contents": [{"parts": [{"functionCall": {"args": {"fileUri": "x"}}}]}]}, ()),
    ],
)  # fmt: skip
def test_what_a_body_of_gemini_names(document: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert names(Family("gemini"), document) == expected


@pytest.mark.parametrize(
    "name",
    [
        "files/mine/../theirs", "files/mine/files/theirs", "files/mine?name=files/theirs", "files/mine#x",
        "https://x.com/v1beta/files/mine/../theirs", "https://x.com/%66iles/theirs#/files/mine",
        "files%2Ftheirs;/files/mine", "../v1/files/mine", "x/../files/mine", "https:\\\\x/files/mine",
        "FILES/mine", "Files/mine", "files//mine", " files/mine/", "files/mine:delete",
    ],
)  # fmt: skip
def test_a_name_that_can_be_read_in_two_ways_is_nobodys(name: str) -> None:
    assert names(Family("gemini"), {"cachedContent": name}) == (name,)


@pytest.mark.parametrize(
    "name", ["files/abc", "/v1beta/files/abc", FILES, f"{FILES}:download?alt=media", "v1/files/abc"]
)
def test_every_plain_spelling_of_a_name_is_its_path(name: str) -> None:
    assert names(Family("gemini"), {"cachedContent": name}) == ("files/abc",)


@pytest.mark.parametrize(
    ("family", "document"),
    [
        ("openai", {"previous_response_id": ["resp_1"]}),
        ("openai", {"previous_response_id": {"id": "resp_1"}}),
        ("openai", {"conversation": ["conv_1"]}),
        ("openai", {"conversation": {"id": ["conv_1"]}}),
        ("openai", {"tools": [{"type": "file_search", "vector_store_ids": {"0": "vs_1"}}]}),
        ("openai", {"tools": [{"type": "file_search", "vector_store_ids": [["vs_1"]]}]}),
        ("openai", {"tools": {"type": "file_search", "vector_store_ids": ["vs_1"]}}),
        ("openai", {"plugins": {"id": "file-parser", "file_id": "file-1"}}),
        ("anthropic", {"container": ["container_1"]}),
        ("gemini", {"cachedContent": ["cachedContents/1"]}),
        ("gemini", {"tools": [{"fileSearch": {"fileSearchStoreNames": {"0": "fileSearchStores/1"}}}]}),
    ],
)
def test_an_id_in_another_shape_than_documented_is_refused(family: str, document: dict[str, Any]) -> None:
    """Some upstreams would take it for that id."""
    with pytest.raises(InvalidRequest):
        names(Family(family), document)


def test_too_many_and_too_long() -> None:
    with pytest.raises(InvalidRequest, match=str(NAMED_MAX)):
        names(Family("openai"), {"file_ids": [f"file-{n}" for n in range(NAMED_MAX + 1)]})
    assert [len(one) for one in names(Family("openai"), {"file_id": "x" * 10_000})] == [ID_CHARACTERS_MAX + 1]


@pytest.mark.parametrize(
    ("family", "path", "place"),
    [
        (Family("openai"), "/v1/responses/resp_1", ObjectPath("resp_1")),
        (Family("openai"), "/v1/responses/resp_1/input_items", ObjectPath("resp_1")),
        (Family("openai"), "/v1/responses", ObjectPath()),
        (Family("openai"), "/v1/responses/compact", ObjectPath()),
        (Family("openai"), "/v1/threads/runs", ObjectPath()),
        (Family("openai"), "/v1/chat/completions/batch", ObjectPath()),
        (Family("openai"), "/v1/chat/completions/chatcmpl-1", ObjectPath("chatcmpl-1")),
        (Family("openai"), "/openai/v1/files/file-1/content", ObjectPath("file-1")),
        (Family("openai"), "/v1/models/gpt-4o", None),
        (Family("openai"), "/v1/filesystem/x", None),
        (Family("anthropic"), "/v1/messages/batches/b1/results", ObjectPath("b1")),
        (Family("anthropic"), "/v1/messages/count_tokens", None),
        (Family("anthropic"), "/v1/messages", None),
        (Family("gemini"), "/v1beta/cachedContents/c1", ObjectPath("cachedContents/c1")),
        (Family("gemini"), "/v1beta/files/abc:download", ObjectPath("files/abc")),
        (Family("gemini"), "/upload/v1beta/files", ObjectPath()),
        (Family("gemini"), "/v1beta/models/gemini-2.5-pro:generateContent", None),
        (Family("generic"), "/files/1", None),
    ],
)
def test_what_a_path_is_about(family: Family, path: str, place: ObjectPath | None) -> None:
    assert set(places_of(family, path)) == ({place} if place is not None else set())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/FILES/file-1", "/V1/Files/file-1/content", "/v1/%46iles/file-1", "/v1/%2546iles/file-1",
        "/v1//files//file-1", "/v1%2Ffiles%2Ffile-1", "/v1/./files/file-1", "/v1/x/%252e%252e/files/file-1",
        "/v1/files;a=b/file-1;c", "/v1/files/file%252D1",
    ],
)  # fmt: skip
def test_an_id_is_found_however_its_path_is_spelled(path: str) -> None:
    assert ObjectPath("file-1") in places_of(Family("openai"), path)


def test_each_reading_of_a_path_names_its_object() -> None:
    path = "/v1/files/theirs/%252e%252e/mine"
    assert set(places_of(Family("openai"), path)) == {ObjectPath("theirs"), ObjectPath("mine")}
    with pytest.raises(InvalidRequest):
        places_of(Family("openai"), "/v1/files/%" + "25" * 20 + "41")


@pytest.mark.parametrize("action", ["runs", "compact", "input_tokens"])
@pytest.mark.parametrize("collection", ["files", "responses", "threads", "vector_stores"])
def test_an_action_is_its_own_collections(collection: str, action: str) -> None:
    path = f"/v1/{collection}/{action}"
    own = {"threads": {"runs"}, "responses": {"compact", "input_tokens"}}
    expected = ObjectPath() if action in own.get(collection, ()) else ObjectPath(action)
    assert places_of(Family("openai"), path) == (expected,)
    assert places_of(Family("openai"), f"{path}/theirs") == (ObjectPath(action),)


_MORE = st.dictionaries(
    st.sampled_from(
        ("content", "function", "encrypted_content", "", "arguments", "output", "input", "action", "role")
    ),
    st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=2),
)


@given(_MORE, st.sampled_from(("message", "function", "reasoning", "tool_use", "auto", "")))
def test_no_member_makes_a_reference_whole(more: dict[str, Any], kind: str) -> None:
    """Outside the lists of what was said an id names an object, whatever stands beside it."""
    one = {**({"type": kind} if kind else {}), **more, "id": "x_1"}
    for document in (
        {"conversation": one}, {"prompt": one}, {"container": one}, {"tools": [{"container": one}]},
        {"messages": [{"role": "assistant", "audio": one}]},
        {"input": [{**one, "type": "item_reference"}]},
    ):  # fmt: skip
        assert "x_1" in names(Family("openai"), document)
    assert "x_1" in named_by(Family("openai"), {"anything": [one]}).objects.unsure


def test_what_answers_tell() -> None:
    response = {
        "id": "resp_2",
        "object": "response",
        "conversation": {"id": "conv_1"},
        "metadata": {"file_id": "not this"},
        "tools": [{"type": "mcp", "annotations": {"file_id": "not this"}}],
        "output": [
            {"id": "msg_1", "type": "message", "content": [
                {"type": "output_text", "text": '{"file_id":"not this"}', "annotations": [
                    {"type": "container_file_citation", "container_id": "cntr_1", "file_id": "cfile_1"},
                    {"type": "file_citation", "file_id": "was there before"}]}]},
            {"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_2"},
            {"id": "mcpl_1", "type": "mcp_list_tools", "tools": [{"annotations": {"file_id": "not this"}}]},
        ],
    }  # fmt: skip
    assert set(read_created_ids(Family("openai"), response)) == {
        "resp_2", "msg_1", "cfile_1", "cntr_1", "ci_1", "cntr_2", "mcpl_1",
    }  # fmt: skip
    assert "conv_1" in read_created_ids(Family("openai"), response, ("conv_1",))  # which its request named
    assert read_created_ids(Family("openai"), {"id": "batch_1", "output_file_id": "file-2"}) == (
        "batch_1",
        "file-2",
    )
    listed = {
        "object": "list",
        "data": [{"id": "msg_1", "content": [{"annotations": [{"file_id": "file-3"}]}]}],
    }
    assert read_created_ids(Family("openai"), listed) == ()
    spoken = {"id": "c", "choices": [{"message": {"audio": {"id": "audio_1"}}}]}
    assert read_created_ids(Family("openai"), spoken) == ("c", "audio_1")
    message = {
        "id": "msg_1",
        "type": "message",
        "container": {"id": "container_1"},
        "content": [
            {"type": "tool_use", "input": {"file_id": "not this", "content": [{"file_id": "nor this"}]}},
            {"type": "mcp_tool_result", "content": {"content": [{"file_id": "not this"}]}},
            {"type": "bash_code_execution_tool_result", "content": {"content": [{"file_id": "file_1"}]}},
        ],
    }
    assert read_created_ids(Family("anthropic"), message) == ("container_1", "file_1")
    assert read_created_ids(Family("anthropic"), {"id": "file_1", "type": "file"}) == ("file_1",)
    assert read_created_ids(Family("gemini"), {"name": "cachedContents/c1", "model": "models/x"}) == (
        "cachedContents/c1",
    )
    assert read_created_ids(Family("gemini"), {"file": {"name": "files/abc", "uri": FILES}}) == ("files/abc",)
    assert read_created_ids(Family("openai"), [1]) == ()


# What goes on costing after the answer that made it.
COSTS_LATER = {
    "cachedContents": "cache_hour", "vector_stores": "gigabyte_day", "containers": "container",
    "fine_tuning/jobs": "fine_tuning_job", "evals": "eval_run", "fileSearchStores": "indexed_file",
}  # fmt: skip


def test_each_route_that_makes_what_costs_later_is_metered() -> None:
    makers: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        rules = family.objects
        for route in family.routes if rules is not None else ():
            shape = SHAPES.get(route.meter)
            found = places_of(family.name, re.sub(r"\{[^}]*\}", "x", route.path))
            if {"POST", "PUT", "PATCH"}.isdisjoint(route.methods) or not found:
                assert shape is None or not (shape.stores or shape.lasts), "it stores in a known collection"
                continue
            [unit] = {rules.collections[place.collection] for place in found}
            assert (unit == "cache_hour") == (shape is not None and shape.lasts), route.path
            if unit and (found[0].makes or shape is not None):
                makers.setdefault(found[0].collection, set()).add(route.meter)
    costs = {
        name: unit for one in FAMILIES.values() for name, unit in one.objects.collections.items() if unit
    }
    assert costs == COSTS_LATER
    assert makers == {
        "cachedContents": {"gemini_cache", "gemini_cache_end"}, "vector_stores": {"openai_stored"},
        "containers": {"openai_stored"}, "fine_tuning/jobs": {"openai_training"},
        "evals": {"openai_runs", "none"},  # an eval costs nothing, its runs do
        "fileSearchStores": {"gemini_stored", "none"},  # neither does an empty store
    }  # fmt: skip
