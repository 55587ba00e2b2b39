"""LiteLLM's hook, called as LiteLLM calls it: it holds, settles and refuses, and believes no client."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.journey.fronts import SHIPPED
from tests.journey.stack import Stack
from tests.journey.test_authorize import CHAT
from tests.journey.test_holds import Holder
from tests.waiting import wait_until

# What the hook takes from LiteLLM and from FastAPI.
INTERFACE = {
    "litellm/__init__.py": "def token_counter(model, messages=None, text=None):\n    return 10\n",
    "litellm/integrations/__init__.py": "",
    "litellm/integrations/custom_logger.py": "class CustomLogger:\n    pass\n",
    "fastapi.py": (
        "class HTTPException(Exception):\n"
        "    def __init__(self, status_code, detail=None, headers=None):\n"
        "        self.status_code, self.detail, self.headers = status_code, detail, headers\n"
    ),
}
HOLD = 10 + CHAT["max_tokens"]  # type: ignore[operator]  # a number


@pytest.fixture
def hook(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, text in INTERFACE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TOLLKEEPER_URL", stack.gateway_url)
    monkeypatch.setenv("TOLLKEEPER_KEY", "tk_unknown")
    spec = spec_from_file_location("tollkeeper_hook", SHIPPED / "litellm" / "tollkeeper_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.hook
    for name in [one for one in sys.modules if one.split(".")[0] in {"litellm", "fastapi"}]:
        del sys.modules[name]


async def test_the_hook_holds_before_a_call_and_settles_after_it(stack: Stack, hook: Any) -> None:
    holder = Holder(stack, 2 * HOLD)
    caller = SimpleNamespace(metadata={"tollkeeper_key": holder.key}, user_id="ann")

    async def ask() -> dict[str, Any]:
        data = CHAT | {"metadata": {"tollkeeper_hold": "another's", "of": "a client"}}
        found: dict[str, Any] = await hook.async_pre_call_hook(caller, None, data, "acompletion")
        return found

    answered, failed = await ask(), await ask()
    assert answered["metadata"]["tollkeeper_hold"] != failed["metadata"]["tollkeeper_hold"] != "another's"
    assert stack.quota(holder.tenant)["tokens_held"] == 2 * HOLD
    with pytest.raises(sys.modules["fastapi"].HTTPException) as refused:
        await ask()
    assert (refused.value.status_code, refused.value.detail) == (429, {"error": "quota_held"})  # type: ignore[attr-defined]  # of a module that is made up
    used = SimpleNamespace(
        prompt_tokens=9,
        completion_tokens=7,
        prompt_tokens_details=SimpleNamespace(cached_tokens=4),
        completion_tokens_details=SimpleNamespace(reasoning_tokens=2),
    )
    for _ in range(2):  # told twice, charged once
        said = {"litellm_params": {"metadata": answered["metadata"]}}
        await hook.async_log_success_event(said, SimpleNamespace(usage=used), None, None)
    error = Exception()
    error.status_code = 429
    await hook.async_post_call_failure_hook(failed, error, caller, traceback_str="")
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    stack.settled(holder.tenant, 2)
    assert holder.consumed() == [16]
    calls = wait_until(lambda: stack.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"])
    charged = next(one for one in calls if one["tokens"])
    assert (charged["usage"]["input"], charged["usage"]["cache_read"], charged["usage"]["reasoning"]) == (
        5,
        4,
        2,
    )
