"""`tollkeeper init`: five answers create a running stack with a tenant, its budget and its key.

It writes each file in the data directory once: a second run changes nothing. The provider's key and the
tenant's key are in files that only their owner can read, and in no log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any

import typer

from gateway.cli.admin.client import AdminClient, CommandFailed, Json, find
from gateway.cli.admin.configuration import TIMEOUT_S, WHERE, written
from gateway.cli.admin.output import say, waiting
from gateway.core.accounts.budget_amounts import wrong_amount
from gateway.core.accounts.budgets import MONEY
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.files import SECRET_BYTES_MAX, read_regular
from gateway.local.demo.seed import status_of
from gateway.local.ports import curl_line

START_S_MAX = 180.0
KNOWN_S_MAX = 60.0
USAGE_PATH = "/.tollkeeper/usage"
# Files in the data directory.
CONFIG, PROVIDER_KEY, OBJECTS, TENANT_KEY, LOG = (
    "tollkeeper.yaml", "provider.key", "team.yaml", "team.key", "up.log",
)  # fmt: skip
ORGANIZATION, PLAN, KEY, APPLIED_AS = "Company", "Tokens without a limit", "first", "init"
DEMO = "demo"
HELLO = "Hello!"


@dataclass(frozen=True, slots=True)
class SetupProvider:
    """A provider for the first call: the variable with its key, and the call's path, header and body."""

    variable: str
    path: str
    header: str
    body: Mapping[str, Any]


_MESSAGES = [{"role": "user", "content": HELLO}]
PROVIDERS: Mapping[str, SetupProvider | None] = {
    DEMO: None,
    "openai": SetupProvider(
        "OPENAI_API_KEY", "/v1/chat/completions", "Authorization: Bearer ",
        {"model": "gpt-4o-mini", "messages": _MESSAGES, "max_tokens": 64},
    ),
    "anthropic": SetupProvider(
        "ANTHROPIC_API_KEY", "/v1/messages", "x-api-key: ",
        {"model": "claude-haiku-4-5", "messages": _MESSAGES, "max_tokens": 64},
    ),
    "gemini": SetupProvider(
        "GEMINI_API_KEY", "/v1beta/models/gemini-2.5-flash:generateContent", "x-goog-api-key: ",
        {"contents": [{"parts": [{"text": HELLO}]}]},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """Answers given by options; for None the user is asked, or the default is used without a terminal."""

    provider: str | None
    key_file: Path | None
    tenant: str | None
    budget: str | None
    data_dir: Path | None
    base_url: str | None
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SetupAnswers:
    provider: str
    provider_key: str
    tenant: str
    budget: str


def init(given: Given, *, start: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Set up a data directory by the answers, start the stack, and print a first call."""
    ask: Callable[..., str] = _prompt if sys.stdin.isatty() else lambda _question, default, **_: default
    if given.provider is not None and given.provider not in PROVIDERS:
        raise CommandFailed(f"--provider must be one of {', '.join(PROVIDERS)}.")
    answers = None
    place = given.data_dir
    if place is None or not (place / CONFIG).exists():
        answers = _answers(given, ask, environ)
        place = place or Path(str(ask("Where to keep data?", ".tollkeeper")))
    place = place.absolute()
    if (place / TENANT_KEY).exists():
        say(f"{place} is set up already: nothing was changed.")
    elif not (place / CONFIG).exists():
        assert answers is not None
        _write_files(place, answers, given)
    if not start:
        say("Nothing was started.")
        typer.echo(f"Start it:    {_render_command(_command(place))}")
        if not (place / TENANT_KEY).exists():
            typer.echo(f"Then finish: tollkeeper init --data-dir {place}")
        return
    facts = _running(place)
    if facts is None and not (place / TENANT_KEY).exists():
        facts = _start_up(place)
    if facts is None:
        typer.echo(f"Start it: {_render_command(_command(place))}")
        return
    if not (place / TENANT_KEY).exists():
        _make_tenant(place, AdminClient(facts["admin_url"], facts["admin_token"], timeout_s=TIMEOUT_S))
    key = (place / TENANT_KEY).read_text().strip()
    _until_known(facts["gateway_url"], key)
    _tell(place, facts, key)


def _prompt(question: str, default: str, *, hidden: bool = False) -> str:
    return str(typer.prompt(question, default=default, hide_input=hidden, show_default=not hidden, err=True))


def _answers(given: Given, ask: Callable[..., str], environ: Mapping[str, str]) -> SetupAnswers:
    """Return the checked answers before anything is written; `CommandFailed` names a wrong option."""
    named = [
        name
        for name, provider in PROVIDERS.items()
        if provider is not None and environ.get(provider.variable)
    ]
    choices = ", ".join(PROVIDERS)
    provider = given.provider or ask(f"Provider ({choices})?", named[0] if named else DEMO)
    if provider not in PROVIDERS:
        raise CommandFailed(f"--provider must be one of {choices}.")
    tenant = (given.tenant if given.tenant is not None else ask("First tenant?", "Search")).strip()
    budget = (given.budget if given.budget is not None else ask("Its budget a month, in USD?", "20")).strip()
    if not tenant:
        raise CommandFailed("--tenant must not be empty.")
    try:
        faults = [fault for _, fault in wrong_amount(MONEY, Decimal(budget), "budget")]
    except InvalidOperation:
        faults = ["must be a number such as 20 or 12.50"]
    if faults:
        raise CommandFailed(f"--budget {faults[0]}.")
    return SetupAnswers(provider, _provider_key(provider, given, ask, environ), tenant, budget)


def _provider_key(provider: str, given: Given, ask: Callable[..., str], environ: Mapping[str, str]) -> str:
    """Return a provider's key, read from the given file or asked for; "" for a provider without keys."""
    known = PROVIDERS[provider]
    if known is None:
        return ""
    if given.key_file is not None:
        try:
            key = read_regular(str(given.key_file), SECRET_BYTES_MAX).decode().strip()
        except (OSError, ValueError) as error:
            raise CommandFailed(f"--key-file {given.key_file} cannot be read.") from error
    else:
        question = f"The key of {provider} (default: {known.variable})?"
        key = ask(question, environ.get(known.variable, ""), hidden=True).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise CommandFailed(
            f"{provider} needs a key: name its file with --key-file, or set {known.variable}."
        )
    return key


def _write_files(place: Path, answers: SetupAnswers, given: Given) -> None:
    """Write the files, the configuration last, so that a directory with a configuration is complete."""
    try:
        if not place.exists():
            place.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True)
        settings: Json = {"settings": dict(given.ports)} if given.ports else {}
        if answers.provider != DEMO:
            _write(place / PROVIDER_KEY, f"{answers.provider_key}\n")
            target_of = FAMILIES[Family(answers.provider)].target
            assert target_of is not None, "a provider has an address"
            url = given.base_url or target_of({}).base_url
            keys = [{"file": str(place / PROVIDER_KEY)}]
            upstream = {"base_url": url, "family": answers.provider, "keys": keys}
            settings |= {"upstreams": {answers.provider: upstream}, "include_default_routes": True}
        _write(place / OBJECTS, written(_objects(answers)))
        _write(place / CONFIG, written(settings))
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}.") from error
    say(f"Written: {place / CONFIG} and {place / OBJECTS}")


def _objects(answers: SetupAnswers) -> Json:
    """Return the tenant's objects in the format of `tollkeeper apply`."""
    owner = {"organization": ORGANIZATION}
    limit = {"unit": MONEY, "amount": answers.budget, "interval": "month"}
    return {
        "organizations": [{"name": ORGANIZATION}],
        "token-plans": [{"name": PLAN}],  # unlimited: the budget is the limit
        "tenants": [{"name": answers.tenant, **owner, "plan": PLAN}],
        "api-keys": [{"name": KEY, "tenant": {**owner, "name": answers.tenant}}],
        "budgets": [{"name": f"{answers.tenant}, a month", **owner, "tenant": answers.tenant, **limit}],
    }


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    coming = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(
        os.open(coming, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    coming.replace(path)


def _command(place: Path) -> list[str]:
    demo = ["--no-demo"] if (place / PROVIDER_KEY).exists() else []
    return ["up", "--config", str(place / CONFIG), "--data-dir", str(place), *demo]


def _render_command(words: list[str]) -> str:
    return " ".join(["tollkeeper", *words])


def _running(place: Path) -> Json | None:
    """Return the addresses of the stack that runs in this directory, or None."""
    try:
        noted: Json = json.loads((place / "up.json").read_bytes())
        running = find({"TOLLKEEPER_DATA_DIR": str(place)})
    except (OSError, ValueError, CommandFailed):
        return None
    return noted if status_of(f"{running.url}/readyz") == 200 else None


def _start_up(place: Path) -> Json:
    """Start `up` in the background, and wait until it serves; return the addresses."""
    log_path = place / LOG
    with waiting("Starting: databases, schema, keeper, gateway"):
        descriptor = os.open(log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            process = subprocess.Popen(  # noqa: S603  # our own program
                [sys.executable, "-m", "gateway", *_command(place), "--json"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        line = _line_of(process.stdout)
    if not line:
        process.terminate()
        raise CommandFailed(f"Tollkeeper did not start within {START_S_MAX:.0f} s; {log_path} says why.")
    facts: Json = json.loads(line)
    return facts


def _line_of(stream: IO[str]) -> str:
    """Return the first line of a stream; empty if it ends, or sends nothing in time."""
    import select  # needed only for a start

    ready, _, _ = select.select([stream], [], [], START_S_MAX)
    return stream.readline() if ready else ""


def _make_tenant(place: Path, api: AdminClient) -> None:
    """Apply the tenant's file, and store its new key in a file before anything is printed."""
    from gateway.cli.admin.configuration import body_of, read_sources  # loaded where needed

    asked = {**body_of(read_sources([str(place / OBJECTS)])), "name": APPLIED_AS}
    with waiting("Making the tenant"):
        plan = api.post(WHERE, {**asked, "trial": True})
        done = api.post(WHERE, {**asked, "digest": plan["digest"]}) if plan["changes"] else {"secrets": []}
    made = [secret["value"] for secret in done["secrets"] if secret["resource"] == "api-keys"]
    if not made:
        raise CommandFailed(
            f"The tenant has a key already, which {place / TENANT_KEY} does not have: rotate it "
            "(`tollkeeper key rotate`) and write it there."
        )
    _write(place / TENANT_KEY, f"{made[0]}\n")


def _until_known(gateway_url: str, key: str) -> None:
    """Wait until the gateway accepts the key."""
    headers = {"Authorization": f"Bearer {key}"}
    until = time.monotonic() + KNOWN_S_MAX
    while status_of(f"{gateway_url}{USAGE_PATH}", headers) != 200:
        if time.monotonic() > until:
            raise CommandFailed(
                f"The gateway at {gateway_url} does not know the key after {KNOWN_S_MAX:.0f} s."
            )
        time.sleep(0.2)


def _tell(place: Path, facts: Json, key: str) -> None:
    """Print a first call and the next steps."""
    provider = _provider_of(place)
    typer.echo("Try it:\n")
    if provider is None:
        typer.echo(curl_line(facts["gateway_url"], key))
    else:
        typer.echo(
            f"curl -s {facts['gateway_url']}{provider.path} -H '{provider.header}{key}'"
            f" -H 'Content-Type: application/json' -d '{json.dumps(provider.body)}'"
        )
    typer.echo(f"\nConsole:        {facts['admin_url']} (admin token: {place / 'secrets.json'})")
    typer.echo(f"Tenant's key:   {place / TENANT_KEY}")
    typer.echo(f"Start it again: {_render_command(_command(place))}")
    typer.echo(f"Stop it:        kill $(cat {place / 'lock'})")


def _provider_of(place: Path) -> SetupProvider | None:
    from gateway.yaml_reader import documents

    [document] = documents((place / CONFIG).read_text(encoding="utf-8"), CONFIG)
    upstreams: Json = (document.value or {}).get("upstreams", {})  # type: ignore[attr-defined]  # a mapping
    return next((PROVIDERS[name] for name in upstreams if name in PROVIDERS), None)
