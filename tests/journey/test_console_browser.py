"""The console in a real Chromium, by keyboard, on a phone and in the dark, against a whole stack."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import chromium
from tests.conftest import free_port
from tests.features.stripe.stripe_server import KEY, stripe_server
from tests.journey.console_rows import furnish, pages_of
from tests.journey.node import install
from tests.journey.stack import Stack
from tests.waiting import HUNG_S

PACKAGES = ("playwright-core@1.65.1", "axe-core@4.14.1")
# Of what goes through every screen.
ALL_S_MAX = 3_600
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def browser() -> str:
    """A real one."""
    return chromium()


@pytest.fixture(scope="module")
def stripe() -> Iterator[str]:
    """The address of a Stripe that serves from a thread of its own."""
    loop, there, over, found = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), list[str]()

    async def serve() -> None:
        async with stripe_server() as server:
            found.append(server.url)
            there.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert there.wait(HUNG_S)
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()


@pytest.fixture(scope="module")
def stack(stripe: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One that sells credits by Stripe."""
    port = free_port()
    one = Stack(
        tmp_path_factory.mktemp("stack") / "data",
        "--admin-port",
        str(port),
        TOLLKEEPER_CONSOLE_URL=f"http://127.0.0.1:{port}",
        TOLLKEEPER_STRIPE_API_KEY=KEY,
        TOLLKEEPER_STRIPE_API_URL=stripe,
        TOLLKEEPER_STRIPE_WEBHOOK_SECRET="whsec_of_the_tests_only",
        TOLLKEEPER_STRIPE_CHECKOUT_MAX="50",
    )
    yield one
    assert one.stop() == 0


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The person's script beside Playwright, which comes from the registry npm is set up with."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, and Playwright cannot be had without it")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "package.json").write_text('{"private":true,"type":"module"}')
    install(npm, folder, *PACKAGES)
    for each in ("console", "fields", "screens", "tasks"):
        shutil.copy(Path(__file__).with_name(f"{each}.mjs"), folder)
    return Path(shutil.copy(Path(__file__).with_name("browser.mjs"), folder))


@pytest.fixture(scope="module")
def furnished(stack: Stack) -> dict[str, Any]:
    """A row of everything, and who comes to look at it."""
    ids = furnish(stack)
    people = {
        "lead": {"role": "operator", "tenant_id": ids["search"]},
        "finance": {"role": "billing"},
        "customer": {"role": "admin", "organization_id": ids["organization"]},
    }
    tokens = {
        name: stack.make("admin-tokens", name=f"{name} at work", **whose)["token"]
        for name, whose in people.items()
    }
    return {"ids": ids, "key": ids["key"], **tokens}


def run_script(stack: Stack, browser: str, script: Path, name: str, **asked: Any) -> dict[str, Any]:
    """Run one of the scripts, and return what it found; nothing may come from elsewhere."""
    said = {"browser": browser, "url": stack.admin_url, "token": stack.admin_token}
    said["profile"] = str(script.parent / f"profile-{name}")
    words = ["node", f"{name}.mjs", json.dumps(said | asked)]
    done = subprocess.run(words, cwd=script.parent, capture_output=True, timeout=ALL_S_MAX, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["foreign"] == []
    return found


# Each task of five people, with the clicks and the typed fields that it takes after signing in.
TASKS = {
    ("platform admin", "a team in an organization"): (3, 2),
    ("platform admin", "a key for an engineer"): (2, 3),
    ("platform admin", "each user 20 dollars a day"): (3, 2),
    ("platform admin", "why was this refused"): (0, 1),
    ("platform admin", "spend of one organization"): (0, 1),
    ("engineer", "what is left"): (0, 0),
    ("engineer", "ask for more"): (2, 2),
    ("engineer", "why was this refused"): (1, 0),
    ("engineer", "copy a snippet"): (1, 0),
    ("engineer", "rotate"): (1, 0),
    ("team lead", "who spends"): (1, 0),
    ("team lead", "decide a raise request"): (1, 0),
    ("team lead", "each of us 5 a day"): (3, 1),
    ("team lead", "a new key"): (2, 1),
    ("team lead", "refused calls of the team"): (2, 0),
    ("platform admin", "a raise request waits"): (3, 0),
    ("finance", "invoice a customer"): (3, 1),
    ("finance", "invoice all of a month"): (4, 0),
    ("finance", "record money that came in"): (4, 2),
    ("finance", "give a line back"): (5, 0),
    ("finance", "revenue, tax and entries of last month"): (7, 0),
    ("customer", "balance and grants"): (1, 0),
    ("customer", "buy credits"): (1, 0),
    ("customer", "make a key"): (2, 2),
    ("customer", "use by model"): (1, 0),
    ("customer", "an invoice's file"): (1, 0),
}


def test_five_people_do_their_tasks(
    stack: Stack, browser: str, script: Path, furnished: dict[str, Any]
) -> None:
    found = run_script(stack, browser, script, "tasks", **furnished)
    assert (found["undone"], found["errors"]) == ([], [])
    counted = {(who, what): (clicks, fields) for who, what, clicks, fields, _ in found["tasks"]}
    assert counted == TASKS
    said = {what: text for _, what, _, _, text in found["tasks"]}
    assert said["a key for an engineer"].startswith("tk_")
    assert said["a raise request waits"] == "Approved: the amount is raised."


def test_what_is_typed_wrongly_anywhere_is_said_in_its_place(
    stack: Stack, browser: str, script: Path, furnished: dict[str, Any]
) -> None:
    rubbish = "\"><b>rub%bish', 1=1"
    values = ["Search", "Nobody at all", "Twin", rubbish]
    asked = {"pages": pages_of(stack), "values": values, "rubbish": rubbish}
    found = run_script(stack, browser, script, "fields", **asked)
    assert (found["silent"], found["raw"]) == ([], [])
    assert min(found["filters"], found["fields"], found["refused"]) > 100


def test_every_screen_serves_phones_and_desks(
    stack: Stack, browser: str, script: Path, furnished: dict[str, Any]
) -> None:
    sizes = [(width, theme) for width in (1440, 390) for theme in ("light", "dark")]
    found = run_script(stack, browser, script, "screens", pages=pages_of(stack), sizes=sizes)
    assert (found["violations"], found["wide"], found["errors"]) == ([], [], [])


def test_a_person_at_the_console(stack: Stack, browser: str, script: Path) -> None:
    priced = {
        "credit_unit_cost": "0.01",
        "stripe_customer": "cus_1",
        "address": ["1 Street"],
        "country": "GB",
    }
    plan = stack.make("token-plans", name="Browser plan", total_amount=5000)
    tenant = stack.make("tenants", name="Browserland Quokka", plan_id=plan["id"])
    whose, today = tenant["organization_id"], datetime.now(UTC).date()
    assert stack.admin("PATCH", f"/organizations/{whose}", priced)[0] == 200
    stack.make("credit-additions", organization_id=whose, credits_added=100, unit_cost="0.01")
    billed = {"period_start": str(today), "period_end": str(today + timedelta(days=2))}
    invoice = stack.make("invoices", organization_id=whose, **billed)
    budget = stack.make(
        "budgets",
        organization_id=whose,
        name="Browser budget",
        unit="money",
        amount="12.50",
        interval="month",
        mode="audit",  # its key calls models that have no price
    )
    stack.chat(stack.api_key)
    key = stack.make("api-keys", tenant_id=tenant["id"], name="own")["key"]
    lead = stack.make("admin-tokens", name="lead", role="operator", tenant_id=tenant["id"])["token"]
    buyer = stack.make("admin-tokens", name="buyer", role="billing", organization_id=whose)["token"]
    asked = {
        "people": [(key, ["/me"]), (lead, ["/me", "/team"]), (buyer, ["/account"])],
        "browser": browser, "profile": str(script.parent / "profile"), "url": stack.admin_url,
        "token": stack.admin_token, "name": "quok", "tenant": tenant["id"], "invoice": invoice["id"],
        "budget": budget["id"], "organization": whose,
    }  # fmt: skip
    ran = subprocess.run(
        ["node", script.name, json.dumps(asked)],
        cwd=script.parent,
        capture_output=True,
        timeout=HUNG_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    # The browser says of each answer of 400 and above that it is an error; one form was refused on purpose.
    assert [text for text in found["errors"] if "422" not in text] == []
    assert found["foreign"] == []
    assert found["wide"] == []
    assert found["violations"] == []
    assert found["meaning"].startswith("Each user of tenant Browserland Quokka may use $20.00 a day.")
    assert (found["before"], found["after"], found["said"]) == ("5,000", "6,000", "Recharged.")
    assert (found["live"], found["searched"], found["listed"], found["menu"]) == (True, True, True, True)
    assert "greater than or equal to 1" in found["refused"]
    assert (found["left"], found["bar"]) == ("$12.50", 1)
    assert found["raised"] == "Raised to $20.00 until 2999-01-31 00:00: a fair"
    assert (found["explored"], found["redrawn"]) == (True, True)
    assert found["path"].startswith("/api-keys/")
    assert found["file"].startswith("/usage.csv?")
    assert found["invoice"] == "finalized"
    assert (found["switched"], found["kept"]) == (found["light"], found["light"])
    assert found["dark"] != found["light"]
    assert stack.chat(found["key"]).status_code == 200
    assert (found["landed"], found["asked"]) == (["/me", "/me", "/"], "open")
    assert found["checkout"] == "Pay $10.00 at Stripe"
    assert stack.chat(found["rotated"]).status_code == 200


# Teams, each with a model, the tokens of one of its calls on a usual day, and what it may spend in all.
TEAMS = (
    ("Search", "gpt-4o", 2_100_000, "1200"),
    ("Support", "gpt-4o-mini", 8_400_000, "100"),
    ("Coding", "gpt-4.1", 1_700_000, "600"),
)


def test_the_overview_shows_a_month(stack: Stack, browser: str, script: Path) -> None:
    """Its pictures, light and dark, are left in build/; docs/img has those that README shows."""
    whose = stack.make("organizations", name="Northwind")["id"]
    plan = stack.make("token-plans", name="Overview plan", total_amount=10**12)
    now = datetime.now(UTC)
    for team, model, tokens, amount in TEAMS:
        tenant = stack.make("tenants", name=team, organization_id=whose, plan_id=plan["id"])["id"]
        stack.make(
            "budgets", name=team, organization_id=whose, tenant_id=tenant, unit="money", interval="total",
            amount=amount,
        )  # fmt: skip
        told = [
            {
                "specversion": "1.0", "type": "use", "source": "overview", "id": f"{team}-{day}-{part}",
                "subject": f"tenant:{tenant}", "time": (now - timedelta(days=day, hours=part)).isoformat(),
                "data": {
                    "service": "chat", "model": model, "user": ("ada", "grace", "edsger")[part],
                    "usage": {"input": tokens * (60 - (now - timedelta(days=day)).weekday() * 9) // 60,
                              "output": tokens // (4 + part)},
                },
            }
            for day in range(30) for part in range(3)
        ]  # fmt: skip
        status, answer = stack.admin("POST", "/events", told)
        assert (status, answer["rejected"]) == (200, []), answer
    folder = Path("build")
    asked = {
        "browser": browser, "profile": str(script.parent / "pictures"), "url": stack.admin_url,
        "token": stack.admin_token, "folder": str(folder.resolve()),
    }  # fmt: skip
    drawn = shutil.copy(Path(__file__).with_name("overview.mjs"), script.parent)
    words = ["node", drawn, json.dumps(asked)]
    ran = subprocess.run(words, cwd=script.parent, capture_output=True, timeout=HUNG_S, check=False)
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    said = json.loads(ran.stdout)["text"]
    assert all(team in said for team, *_ in TEAMS)
    assert all((folder / f"overview-{scheme}.png").stat().st_size > 20_000 for scheme in ("light", "dark"))
