"""Ask one thing by an SDK, and print what came of it: `python sdk_calls.py NAME URL KEY MODEL PROMPT TOOL`.

It runs in the environment of that SDK alone, so each function imports what it needs. With a TOOL those that
run tools offer one.
"""

import asyncio
import os
import sys
from typing import Any

NAME, *PLACE, PROMPT, TOOL = sys.argv[1:]
FIELDS = {"x-tollkeeper-user": "alice"}
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
MAXIMUM = 256


def look_up(place: str) -> str:
    """Look a place up."""
    return f"{place} is near"


TOOLS: list[Any] = [look_up] if TOOL else []


def show(text: Any) -> None:
    print(text or "", end="", flush=True)


def openai(url: str, key: str, model: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=FIELDS)
    for chunk in client.chat.completions.create(model=model, messages=MESSAGES, stream=True):
        show(chunk.choices[0].delta.content if chunk.choices else "")


def openai_responses(url: str, key: str, model: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=FIELDS)
    for event in client.responses.create(model=model, input=PROMPT, stream=True):
        show(event.delta if event.type == "response.output_text.delta" else "")


def anthropic(url: str, key: str, model: str) -> None:
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key=key, default_headers=FIELDS)
    with client.messages.stream(model=model, messages=MESSAGES, max_tokens=MAXIMUM) as stream:
        for text in stream.text_stream:
            show(text)


def google_genai(url: str, key: str, model: str) -> None:
    from google import genai

    client = genai.Client(api_key=key, http_options={"base_url": url, "headers": FIELDS})
    offered = {"config": {"tools": TOOLS}} if TOOLS else {}
    for chunk in client.models.generate_content_stream(model=model, contents=PROMPT, **offered):
        show(chunk.text)


def openai_agents(url: str, key: str, model: str) -> None:
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, default_headers=FIELDS)
    agent = Agent(
        "agent", model=OpenAIResponsesModel(model, client), tools=[function_tool(one) for one in TOOLS]
    )
    show(Runner.run_sync(agent, PROMPT).final_output)


def claude_agent_sdk(url: str, key: str, model: str) -> None:
    from claude_agent_sdk import AssistantMessage, ClaudeAgentOptions, TextBlock, query

    said = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_CUSTOM_HEADERS": "x-tollkeeper-user: alice",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }

    async def ask() -> None:
        async for message in query(prompt=PROMPT, options=ClaudeAgentOptions(model=model, env=said)):
            if isinstance(message, AssistantMessage):
                for block in message.content:
                    show(block.text if isinstance(block, TextBlock) else "")

    asyncio.run(ask())


def google_adk(url: str, key: str, model: str) -> None:
    from google.adk.agents import LlmAgent
    from google.adk.runners import InMemoryRunner
    from google.genai import types

    os.environ |= {"GOOGLE_API_KEY": key, "GOOGLE_GEMINI_BASE_URL": url}
    config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=FIELDS))
    runner = InMemoryRunner(
        LlmAgent(name="agent", model=model, generate_content_config=config, tools=TOOLS), app_name="app"
    )

    async def ask() -> None:
        session = await runner.session_service.create_session(app_name="app", user_id="alice")
        content = types.Content(role="user", parts=[types.Part(text=PROMPT)])
        async for event in runner.run_async(user_id="alice", session_id=session.id, new_message=content):
            for part in (event.content.parts if event.content else None) or ():
                show(part.text)
            show(event.error_message)

    asyncio.run(ask())


def pydantic_ai(url: str, key: str, model: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key))
    show(Agent(chat, tools=TOOLS, model_settings={"extra_headers": FIELDS}).run_sync(PROMPT).output)


def pydantic_ai_messages(url: str, key: str, model: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    made = AnthropicModel(model, provider=AnthropicProvider(base_url=url, api_key=key))
    show(Agent(made, tools=TOOLS, model_settings={"extra_headers": FIELDS}).run_sync(PROMPT).output)


def pydantic_ai_gemini(url: str, key: str, model: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    made = GoogleModel(model, provider=GoogleProvider(base_url=url, api_key=key))
    show(Agent(made, tools=TOOLS, model_settings={"extra_headers": FIELDS}).run_sync(PROMPT).output)


def langchain(url: str, key: str, model: str) -> None:
    from langchain_openai import ChatOpenAI

    _langchain(ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key, default_headers=FIELDS))


def langchain_messages(url: str, key: str, model: str) -> None:
    from langchain_anthropic import ChatAnthropic

    _langchain(ChatAnthropic(model=model, base_url=url, api_key=key, default_headers=FIELDS))


def langchain_gemini(url: str, key: str, model: str) -> None:
    from langchain_google_genai import ChatGoogleGenerativeAI

    _langchain(ChatGoogleGenerativeAI(model=model, base_url=url, api_key=key, additional_headers=FIELDS))


def _langchain(model: Any) -> None:
    if TOOLS:
        from langchain.agents import create_agent

        show(create_agent(model, TOOLS).invoke({"messages": MESSAGES})["messages"][-1].text)
        return
    for chunk in model.stream(PROMPT):
        show(chunk.text)


def litellm(url: str, key: str, model: str) -> None:
    from litellm import completion

    said = {"api_base": f"{url}/v1", "api_key": key, "messages": MESSAGES, "extra_headers": FIELDS}
    for chunk in completion(model=f"openai/{model}", stream=True, **said):
        show(chunk.choices[0].delta.content)


def litellm_messages(url: str, key: str, model: str) -> None:
    from litellm import completion

    said = {"api_base": url, "api_key": key, "messages": MESSAGES, "extra_headers": FIELDS}
    for chunk in completion(model=f"anthropic/{model}", stream=True, **said):
        show(chunk.choices[0].delta.content)


def dspy(url: str, key: str, model: str) -> None:
    from dspy import LM

    show(LM(f"openai/{model}", api_base=f"{url}/v1", api_key=key, cache=False)(PROMPT)[0])


def crewai(url: str, key: str, model: str) -> None:
    from crewai import LLM, Agent
    from crewai.tools import tool

    made = LLM(f"openai/{model}", base_url=f"{url}/v1", api_key=key, default_headers=FIELDS)
    words = {"role": "keeper", "goal": "answer", "backstory": "A keeper of a gate."}
    agent = Agent(**words, llm=made, tools=[tool(one.__name__)(one) for one in TOOLS])
    show(agent.kickoff(PROMPT).raw)


def semantic_kernel(url: str, key: str, model: str) -> None:
    from openai import AsyncOpenAI
    from semantic_kernel.agents import ChatCompletionAgent
    from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
    from semantic_kernel.functions import KernelPlugin, kernel_function

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, default_headers=FIELDS)
    offered = [KernelPlugin("places", functions=[kernel_function(one) for one in TOOLS])] if TOOLS else []
    service = OpenAIChatCompletion(model, async_client=client)
    agent = ChatCompletionAgent(service=service, name="agent", plugins=offered)
    show(asyncio.run(agent.get_response(PROMPT)).content)


def instructor(url: str, key: str, model: str) -> None:
    from instructor import from_openai
    from openai import OpenAI
    from pydantic import BaseModel

    class Said(BaseModel):
        text: str

    tool = {"x-demo-tool": 'Said {"text": "You said: pong"}'}
    client = from_openai(OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=FIELDS | tool))
    show(client.chat.completions.create(model=model, messages=MESSAGES, response_model=Said).text)


globals()[NAME](*PLACE)
