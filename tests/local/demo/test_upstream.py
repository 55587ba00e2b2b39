"""The demo upstream: the shapes the official SDK reads, exact counts, streams that end as asked."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gateway.local.demo import upstream
from gateway.local.demo.upstream import serve

HELLO = [{"role": "user", "content": "Hello, world!"}]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A demo upstream in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(serve("127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


@pytest.fixture
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(
    port: int, path: str, body: Any = None, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), sent)
    answer = connection.getresponse()
    try:
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def events(raw: bytes) -> list[Any]:
    found = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in found if each != "[DONE]"]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        4,
        5,
        9,
    )


def test_chat_streams_the_same_text_and_the_same_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: Hello, world!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    silent = list(client.chat.completions.create(model="demo", messages=HELLO, stream=True))
    assert all(chunk.usage is None for chunk in silent)


def test_output_is_cut_at_the_maximum_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_only_a_maximum_that_was_asked_for_is_told_as_one(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "word " * 40}]
    for maximum, reason in ((None, "stop"), (64_000, "stop"), (3, "length")):
        asked = {} if maximum is None else {"max_tokens": maximum}
        answer = client.chat.completions.create(model="demo", messages=long, **asked)
        assert answer.choices[0].finish_reason == reason


def test_it_answers_people_and_not_the_program(client: openai.OpenAI) -> None:
    asked = [*HELLO, {"role": "system", "content": "Be brief."}]
    answer = client.chat.completions.create(model="demo", messages=asked)
    assert answer.choices[0].message.content == "You said: Hello, world!"


CALL = {"x-demo-tool": 'run {"command": "ls", "wait": true}'}
GIVEN = {"command": "ls", "wait": True}


def test_a_named_tool_is_called_in_a_chat_until_its_result_is_there(client: openai.OpenAI) -> None:
    called = client.chat.completions.create(model="demo", messages=HELLO, extra_headers=CALL).choices[0]
    assert called.finish_reason == "tool_calls"
    (tool,) = called.message.tool_calls or ()
    assert (tool.function.name, json.loads(tool.function.arguments)) == ("run", GIVEN)
    frames = client.chat.completions.create(model="demo", messages=HELLO, stream=True, extra_headers=CALL)
    deltas = [
        one.function for each in frames if each.choices for one in each.choices[0].delta.tool_calls or ()
    ]
    assert "".join(one.arguments or "" for one in deltas if one) == tool.function.arguments
    result = {"role": "tool", "tool_call_id": tool.id, "content": "a.txt"}
    answer = client.chat.completions.create(
        model="demo", messages=[*HELLO, called.message.to_dict(), result], extra_headers=CALL
    )
    assert answer.choices[0].message.content == "You said: a.txt"


def test_a_named_tool_is_called_in_a_response(client: openai.OpenAI) -> None:
    (call,) = client.responses.create(model="demo", input="Hi", extra_headers=CALL).output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("run", GIVEN)
    events = list(client.responses.create(model="demo", input="Hi", stream=True, extra_headers=CALL))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    (streamed,) = events[-1].response.output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    given = {"type": "function_call_output", "call_id": call.call_id, "output": "a.txt"}
    answer = client.responses.create(model="demo", input=[call.to_dict(), given], extra_headers=CALL)
    assert answer.output_text == "You said: a.txt"


def test_a_named_tool_is_called_in_a_message_and_in_a_content(port: int) -> None:
    body = {"model": "demo", "max_tokens": 50, "messages": HELLO}
    headers = {"x_demo_tool": CALL["x-demo-tool"]}
    use = json.loads(ask(port, "/v1/messages", body, **headers)[2])["content"][-1]
    assert (use["name"], use["input"]) == ("run", GIVEN)
    streamed = events(ask(port, "/v1/messages", body | {"stream": True}, **headers)[2])
    parts = [each["delta"]["partial_json"] for each in streamed if "partial_json" in each.get("delta", ())]
    assert json.loads("".join(parts)) == GIVEN
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"], "content": "a"}]}
    asked = body | {"messages": [*HELLO, {"role": "assistant", "content": [use]}, result]}
    assert json.loads(ask(port, "/v1/messages", asked, **headers)[2])["content"] == [
        {"type": "text", "text": "You said: a"}
    ]
    contents = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
    answer = json.loads(ask(port, "/v1beta/models/demo:generateContent", contents, **headers)[2])
    part = answer["candidates"][0]["content"]["parts"][-1]
    assert part["functionCall"] == {"name": "run", "args": GIVEN}
    assert ask(port, "/v1/messages", body, x_demo_tool="run {")[0] == 400


def test_usage_may_be_dictated(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, extra_headers={"x-demo-usage": "100,20,30,5"}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 120
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 30


def test_the_other_shapes_of_openai(client: openai.OpenAI) -> None:
    assert client.completions.create(model="demo", prompt="Hi").choices[0].text == "You said: Hi"
    assert len(client.embeddings.create(model="demo", input=["a", "b"]).data) == 2
    assert [model.id for model in client.models.list()] == list(upstream.MODELS)
    assert client.models.retrieve("demo-small").id == "demo-small"
    response = client.responses.create(model="demo", input="Hi")
    assert response.output_text == "You said: Hi"
    assert response.usage is not None
    assert response.usage.total_tokens == 5


def test_responses_stream(client: openai.OpenAI) -> None:
    received = list(client.responses.create(model="demo", input="Hi", stream=True))
    assert received[0].type == "response.created"
    last = received[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 5


def test_anthropic_messages(port: int) -> None:
    body = {"model": "demo", "max_tokens": 50, "messages": HELLO}
    status, _, raw = ask(port, "/v1/messages", body)
    assert status == 200
    assert json.loads(raw)["usage"]["output_tokens"] == 5
    streamed = events(ask(port, "/v1/messages", body | {"stream": True})[2])
    assert streamed[0]["message"]["usage"]["input_tokens"] == 4
    assert streamed[-2]["usage"] == {
        "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5,
    }  # fmt: skip
    assert streamed[-1]["type"] == "message_stop"
    assert json.loads(ask(port, "/v1/messages/count_tokens", body)[2]) == {"input_tokens": 4}


def test_gemini_contents(port: int) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "Hello, world!"}]}]}
    place = "/v1beta/models/demo:"
    whole = json.loads(ask(port, place + "generateContent", body)[2])
    assert whole["usageMetadata"]["totalTokenCount"] == 9
    pieces = events(ask(port, place + "streamGenerateContent?alt=sse", body)[2])
    array = json.loads(ask(port, place + "streamGenerateContent", body)[2])
    assert pieces == array
    assert pieces[-1]["usageMetadata"] == whole["usageMetadata"]
    assert json.loads(ask(port, place + "countTokens", body)[2]) == {"totalTokens": 4}
    assert ask(port, place + "fly", body)[0] == 404


def test_models_in_three_shapes(port: int) -> None:
    assert "models" in json.loads(ask(port, "/v1beta/models", method="GET")[2])
    assert json.loads(ask(port, "/v1/models", method="GET")[2])["data"][0]["object"] == "model"
    found = json.loads(ask(port, "/v1/models", method="GET", anthropic_version="2023-06-01")[2])
    ends = (found["has_more"], found["first_id"], found["last_id"])
    assert (found["data"][0]["type"], *ends) == ("model", False, *upstream.MODELS)


def test_any_other_path_is_echoed_with_the_units_asked_for(port: int) -> None:
    status, headers, raw = ask(port, "/reports/7?a=%20b", {"x": 1}, "PUT", x_demo_units="3")
    said = json.loads(raw)
    assert status == 200
    assert headers["x-usage-amount"] == "3"
    assert (said["method"], said["target"], said["body"]) == ("PUT", "/reports/7?a=%20b", '{"x": 1}')


def test_failures_on_demand(port: int) -> None:
    assert ask(port, "/v1/chat/completions", {}, x_demo_status="500")[0] == 500
    body = {"model": "demo", "messages": HELLO, "stream": True}
    with pytest.raises(http.client.IncompleteRead):
        ask(port, "/v1/chat/completions", body, x_demo_cut="2")


def test_bodies_may_be_chunked_and_connections_are_kept(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(2):
        connection.request(
            "POST",
            "/echo",
            iter([b"ab", b"c"]),
            encode_chunked=True,
            headers={"Transfer-Encoding": "chunked"},
        )
        assert json.loads(connection.getresponse().read())["body"] == "abc"
    connection.close()


@pytest.mark.parametrize(
    "body", [{"messages": 7}, {"messages": None}, {"stream_options": 3, "stream": True}, [], "x"]
)
def test_odd_bodies_are_answered(port: int, body: Any) -> None:
    assert ask(port, "/v1/chat/completions", body)[0] in {200, 400}


def test_a_refusal_with_the_fields_that_were_asked_for(port: int) -> None:
    fields = json.dumps({"retry-after": "20", "x-ratelimit-remaining-requests": 0, "bad": "a\r\nb"})
    status, headers, _ = ask(port, "/v1/chat/completions", {}, x_demo_status="429", x_demo_fields=fields)
    assert (status, headers["retry-after"], headers["x-ratelimit-remaining-requests"]) == (429, "20", "0")
    assert "bad" not in headers
    for nothing in ("x", "[]", "{"):
        assert ask(port, "/x", x_demo_status="529", x_demo_fields=nothing)[0] == 529
