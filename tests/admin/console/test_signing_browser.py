"""Signing in elsewhere in a real Chromium, which decides by itself where it sends which cookie."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.core.issuers import SignIn
from gateway.issuers.sign_in import SignIns
from tests.admin.conftest import api_of
from tests.admin.console.elsewhere import configured
from tests.chromium import chromium
from tests.conftest import free_port
from tests.identity_provider import identity_provider
from tests.waiting import HUNG_S


async def test_browser_returning_from_the_identity_provider_is_signed_in_and_sees_the_wanted_page(
    admin_database: str, keeper_database: str, tmp_path: Path
) -> None:
    browser, port = await asyncio.to_thread(chromium), free_port()
    console = f"http://localhost:{port}"  # another site than the provider's, which is 127.0.0.1
    with identity_provider() as provider:
        provider.back, provider.has_pages = f"{console}/sign-in/example/back", True
        sign_in = SignIn(console, (configured("example", provider),))
        sign_ins = SignIns(sign_in, time.monotonic, time.time, lambda *_, **__: None)
        async with api_of(admin_database, keeper_database, sign_ins=sign_ins, port=port) as api:
            people = {"name": "people", "role": "readonly", "subject": "staff", "issuer": provider.url}
            await api.make("admin-tokens", **people)
            await api.make("tenants", name="Quokkaland")
            ran = await asyncio.create_subprocess_exec(
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                f"--user-data-dir={tmp_path}", "--virtual-time-budget=60000", "--dump-dom",
                f"{console}/sign-in/example?next=/tenants",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(HUNG_S):
                    page, said = await ran.communicate()
            finally:
                if ran.returncode is None:
                    ran.kill()
                    await ran.wait()
    assert b"Quokkaland" in page, said.decode()[-2000:] + page.decode()[-2000:]
    assert b">Kim<" in page
