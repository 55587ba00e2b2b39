# ruff: noqa: INP001  # LiteLLM loads it by its path
"""Make Tollkeeper the authority of LiteLLM's proxy: hold an amount before each call, settle it afterwards.

The API key of Tollkeeper is in the metadata of the LiteLLM key (`tollkeeper_key`), else in `TOLLKEEPER_KEY`.
The service is `TOLLKEEPER_SERVICE`. The operator writes both environment and metadata. Callers cannot.
"""

from __future__ import annotations

import os
from typing import Any

import litellm
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from gateway.client.holds import AsyncHolds, HoldRefused

URL = os.environ.get("TOLLKEEPER_URL", "http://127.0.0.1:8080")
SERVICE = os.environ.get("TOLLKEEPER_SERVICE", "chat")
# Seconds until an unsettled hold expires; output tokens held for a call that states no maximum.
TTL_S, OUTPUT_TOKENS = 600, 4096
# Most clients, one per key, and most calls in progress. Beyond these the oldest call is charged as held.
CLIENTS_MAX, CALLS_MAX = 1_000, 100_000
NAME = "tollkeeper_hold"


class TollkeeperHook(CustomLogger):
    """Holds an estimated amount at Tollkeeper before each LiteLLM call, and settles the real use after it."""

    def __init__(self) -> None:
        super().__init__()
        self._clients: dict[str, AsyncHolds] = {}
        self._keys: dict[str, str] = {}  # API keys by hold id: LiteLLM's log events do not have them

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Acquire a hold for the call and note its id in `data`.

        Raise HTTPException if Tollkeeper refuses the hold or does not answer (503): LiteLLM then refuses the
        call.
        """
        key = (user_api_key_dict.metadata or {}).get("tollkeeper_key") or os.environ.get("TOLLKEEPER_KEY", "")
        said = {"model": data.get("model", ""), "max_tokens": _most(data), "ttl_s": TTL_S}
        if user_api_key_dict.user_id:
            said["user"] = user_api_key_dict.user_id
        try:
            hold = await self._client(key).take(SERVICE, **said)
        except HoldRefused as refused:
            after = {} if refused.retry_after_s is None else {"retry-after": str(refused.retry_after_s)}
            raise HTTPException(refused.status, {"error": refused.reason}, after) from refused
        except OSError as error:
            raise HTTPException(503, {"error": "Tollkeeper does not answer."}) from error
        if len(self._keys) >= CALLS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[hold.id] = key
        for name in ("metadata", "litellm_metadata"):  # replaces a value that a client wrote
            if name in data or name == "metadata":
                data[name] = {**(data.get(name) or {}), NAME: hold.id}
        return data

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Settle the hold by the answer's usage. Without a usage report the hold is left to expire."""
        usage = getattr(response_obj, "usage", None)
        id_ = _held(kwargs.get("litellm_params") or {})
        if usage is not None:
            await self._settle(id_, _kinds(usage))

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """Settle the hold at no cost. LiteLLM calls this after all retries and fallbacks have failed."""
        status = int(getattr(original_exception, "status_code", None) or 500)
        await self._settle(_held(request_data), status=max(400, min(599, status)))

    async def _settle(self, id_: str, usage: dict[str, int] | None = None, status: int = 200) -> None:
        key = self._keys.pop(id_, None)
        if key is not None:
            await self._client(key).settle(id_, usage, status=status)

    def _client(self, key: str) -> AsyncHolds:
        if key not in self._clients:
            if len(self._clients) >= CLIENTS_MAX:
                self._clients.pop(next(iter(self._clients))).close()
            self._clients[key] = AsyncHolds(URL, key)
        return self._clients[key]


def _most(data: dict[str, Any]) -> int:
    """Return the most tokens a call may use: input as LiteLLM counts it, plus maximum output per choice."""
    text = data.get("messages") or data.get("input") or data.get("prompt") or ""
    if isinstance(text, list) and text and isinstance(text[0], dict):
        read = litellm.token_counter(model=data.get("model", ""), messages=text)
    else:
        read = litellm.token_counter(model=data.get("model", ""), text=str(text))
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    most = next((data[name] for name in names if data.get(name)), OUTPUT_TOKENS)
    return int(read) + int(most) * int(data.get("n") or 1)


def _held(params: dict[str, Any]) -> str:
    found = [(params.get(name) or {}).get(NAME) for name in ("metadata", "litellm_metadata")]
    return next((one for one in found if isinstance(one, str)), "")


def _kinds(usage: Any) -> dict[str, int]:
    """Return LiteLLM's usage report as token counts by Tollkeeper's kinds of tokens."""

    def count(of: Any, name: str) -> int:
        return int(getattr(of, name, None) or 0)

    read = getattr(usage, "prompt_tokens_details", None)
    cached, written = count(read, "cached_tokens"), count(usage, "cache_creation_input_tokens")
    made = getattr(usage, "completion_tokens_details", None)
    return {
        "input": max(0, count(usage, "prompt_tokens") - cached - written),
        "cache_read": cached,
        "cache_write": written,
        "output": count(usage, "completion_tokens"),
        "reasoning": min(count(made, "reasoning_tokens"), count(usage, "completion_tokens")),
    }


hook = TollkeeperHook()
