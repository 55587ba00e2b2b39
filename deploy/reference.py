#!/usr/bin/env python3
"""Write the generated reference pages: `python deploy/reference.py`, or `make docs`.

Commands come from the command line itself, refusals from the classes of errors, the schema of configuration
from the resources. The pages are committed so that they can be read in a checkout. A test fails when one is
outdated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402  # found once the checkout is on the path

from deploy.tables_stub import stub  # noqa: E402
from gateway import errors  # noqa: E402
from gateway.admin.configuration.words import schema  # noqa: E402
from gateway.cli import main as cli  # noqa: E402
from gateway.cli.admin import program as cli_admin  # noqa: E402
from gateway.core.alerts.events.registry import all_events  # noqa: E402
from gateway.settings import settings  # noqa: E402
from gateway.settings.checking import wanted_of  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
HELP_COLUMNS = 100
MADE = "<!-- Made from the code by deploy/reference.py: `make docs` writes it again. -->"

COMMANDS = """# Commands

`tollkeeper COMMAND --help` says the same. The administration commands, those that read or change what is
in the database, speak to the Admin API; [settings](../settings.md#the-administration-commands) says how
they find it. What prints a result has `--json` for programs.

Shells complete commands and options once they are told to: `tollkeeper --install-completion` does so for
the bash, zsh, fish or PowerShell it is typed in, from the next shell on. `tollkeeper --show-completion`
prints the script instead, for a place of your own such as `~/.config/fish/completions/tollkeeper.fish`.
Zsh wants `compinit` to have run.

Where a row is asked for, its name completes as well, if the Admin API answers within two seconds. Whole
numbers may be written as `5000000`, `5,000,000` or `5M`.
"""
REFUSALS = """# Refusals

## Of the gateway

The gateway itself answers these requests. Before an upstream was asked, a refusal costs at most one of the
sender's requests a minute. With 502 and 504, what came of an answer that broke off is charged. A call whose
settlement could not be kept (503 `counters_unavailable`) may be charged too, and the units of a call whose
body broke off while it was passed on (400, 408, 413). [Which refusal comes
first](../internals/request.md#refusals) has the whole order, with files.

The reason is in `x-tollkeeper-reason`, is the label `reason` of `tollkeeper_requests_total`, and is the
same for every API; the body has the API's own shape. Each 429, 503 and 529 also says in
`x-tollkeeper-refused-by` who refused: `upstream`, the scope of the limit (`key`, `user`, `tenant`,
`organization`, `budget`), or `gateway`. Where a budget refused, `x-tollkeeper-budget` has its name,
percent-encoded where that is not visible ASCII. An upstream's own refusals pass as they are. While an
upstream that refused [is left alone](../upstream-limits.md), the gateway answers `rate_limited` for it, by
`upstream`.
"""
EVENTS = """# Events

What [webhooks and mail](../webhooks.md) tell of. An event is reported once for each occasion, to each webhook
that wants it. Its message, and so the knowledge that it was reported, is stored for the days named here.

| Event | When | Once | Days | Fields of `data` |
|---|---|---|---:|---|"""
ADMIN_REFUSALS = """Bytes that are not acceptable HTTP are `invalid_request` with the nearer status where
HTTP has one: 408, 414, 417, 426, 431, 501 or 505. What broke off an answer that had begun is in the metric
alone: `answer_cut`, `client_gone`.

## Of the Admin API

As problem+json (RFC 9457); its `type` ends in the reason.
"""


def main() -> int:
    """Write the pages whose text has changed, and return the exit status."""
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")
    return 0


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    made = {"commands.md": commands(), "refusals.md": refusals(), "events.md": events()}
    written = {name: "\n".join([MADE, "", *lines]).rstrip() + "\n" for name, lines in made.items()}
    written["../../gateway/cli/help.txt"] = help_text()
    written["../../persistence/tables.pyi"] = stub()
    written["../../deploy/helm/tollkeeper/files/settings.json"] = chart_settings()
    return {**written, "configuration.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"}


# Settings that no gateway reads, so that a sidecar is not given them.
OF_KEEPERS = re.compile(
    r"(admin|archive|dunning|invoices?|organization|smtp|stripe|usage_feed)(_.*)?|.*_keep_days|redis_servers"
    r"|console_url|flush_interval_s|ledger_key_file|partitions_by|reclaim|waiting_entries_max|webhook_.*"
)


def chart_settings() -> str:
    """Return the rules of all settings for the Helm chart: JSON, null for a secret."""
    rules = {
        name.upper(): None if name in settings.SECRETS else {"default": value} | rule_of(name)
        for name, value in settings.Settings().named().items()
    }
    lines = [f" {json.dumps(name)}: {json.dumps(rule)}" for name, rule in sorted(rules.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rule_of(name: str) -> dict[str, object]:
    """Return what a value of a setting must be: in words, and by a pattern or bounds where these decide alone."""
    hint = settings.TYPES[name]
    marks = {"lines": name in settings.LINES, "keepers": OF_KEEPERS.fullmatch(name) is not None}
    rule: dict[str, object] = {mark: True for mark, has in marks.items() if has}
    if hint is not str:
        rule["right"] = wanted_of(name, hint)
    if hint is bool or get_origin(hint) is Literal:
        choices = ("true", "false") if hint is bool else map(str, get_args(hint))
        return rule | {"pattern": f"^({'|'.join(choices)})$"}
    for meta in getattr(hint, "__metadata__", ()):
        if meta.pattern is not None:
            rule["pattern"] = meta.pattern.replace(r"\Z", "$")
        bounds = {"least": meta.ge, "above": meta.gt, "most": meta.le}
        rule |= {kind: bound for kind, bound in bounds.items() if bound is not None}
    if "most" in rule:
        rule["pattern"] = "^[0-9]+$" if hint.__origin__ is int else r"^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"
    return rule


def help_text() -> str:
    """Return the output of `tollkeeper --help`, which is printed later without loading all commands."""
    asked = "from gateway.cli.main import run; run(['--help'])"
    said = subprocess.run(  # noqa: S603  # this program
        [sys.executable, "-c", asked], env=os.environ | {"COLUMNS": str(HELP_COLUMNS), "NO_COLOR": "1"},
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True,
    ).stdout  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in said.strip().splitlines())


def events() -> list[str]:
    """Return the lines of the page that lists each event that a webhook may select, with its fields."""
    lines = EVENTS.splitlines()
    for event in all_events().values():
        if event.is_selectable:
            fields = ", ".join(f"`{name}`" for name in event.schema())
            lines.append(f"| `{event.name}` | {event.when} | {event.once} | {event.kept_days} | {fields} |")
    return lines


# --- commands ---------------------------------------------------------------------------


def commands() -> list[str]:
    """Return the lines of the page that lists every command with its arguments and options."""
    program = typer.Typer(add_completion=False)
    cli_admin.mount(program)
    cli.mount_features()
    groups = {**typer.main.get_group(cli.app).commands, **typer.main.get_group(program).commands}
    lines = [*COMMANDS.splitlines(), ""]
    for name, command in groups.items():
        lines += [f"## tollkeeper {name}", "", _sentence(command.help), ""]
        inner = getattr(command, "commands", None)
        if inner is None:
            lines += _parameters(command)
            continue
        for word, each in inner.items():
            lines += [f"### tollkeeper {name} {word}", "", _sentence(each.help), "", *_parameters(each)]
    return lines


def _parameters(command: Any) -> list[str]:
    rows = [
        _parameter(each) for each in command.params if each.name != "help" and not getattr(each, "hidden", 0)
    ]
    if not rows:
        return []
    return ["| Argument or option | | What it is |", "|---|---|---|", *rows, ""]


def _parameter(each: Any) -> str:
    if each.param_type_name == "argument":
        names = f"`{each.metavar or each.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts))
    says = []
    if each.required:
        says.append("required")
    elif each.default not in (None, True, False, ()) and not callable(each.default):
        shown = getattr(each.default, "value", each.default)
        says.append(f"default `{shown}`")
    if getattr(each, "multiple", False):
        says.append("may be repeated")
    kind = get_args(each.type_descriptor.annotation) or (each.type_descriptor.annotation,)
    help_text = _cell(each.help or "")
    if isinstance(kind[0], type) and issubclass(kind[0], Enum):
        help_text = f"{help_text} {', '.join(f'`{choice.value}`' for choice in kind[0])}".strip()
    return f"| {names} | {', '.join(says)} | {help_text} |"


# --- refusals ---------------------------------------------------------------------------

# A reason without an entry here fails the generation of the page: its author adds the remedy.
HINTS = {
    "invalid_request": "Correct the field the message names; "
    "[how requests are read](../metering.md#what-a-request-must-be).",
    "too_many_budgets": "Ask for fewer models, or leave a group that has a budget; [groups](../budgets.md#groups).",
    "user_required": "Name the user in `x-tollkeeper-user` or in the body; "
    "the key has `user_header: require`.",
    "run_required": "Name a run in `x-tollkeeper-run`; [runs](../runs.md#policies).",
    "invalid_api_key": "Send a key of `tollkeeper key create`; "
    "`tollkeeper key list` shows what is revoked and expired.",
    "insufficient_credits": "`tollkeeper credits add`, or a higher `credit_limit` of the organization.",
    "spend_cap_reached": "Raise the organization's `spend_cap`, or wait for the next month (UTC).",
    "model_not_priced": "Use a model of the service's price list, letter by letter, "
    "or give the list a price for it or for `*`. For a tool, name its price (`--tools NAME=…`).",
    "model_not_allowed": "Use a model of the key's list, or make a key with another list.",
    "service_not_included": "`tollkeeper subscription change` to a plan with this service, "
    "or give the tenant a token plan.",
    "tenant_blocked": "By an administrator: `tollkeeper tenant unblock`. For an unpaid invoice: "
    "[pay it](../dunning.md); an unblock leaves the debt. As too much waits: "
    "[decide about the account](../operate/unstored.md#accounts-in-quarantine), then unblock.",
    "unknown_route": "Correct the path, or add a route to the "
    "[configuration](../settings.md#upstreams-and-routes).",
    "object_not_found": "Name objects that this organization's own calls made; see "
    "[stored objects](../concepts.md#stored-objects).",
    "method_not_allowed": "Use a method that `Allow` names.",
    "request_too_large": "Send less, or raise `TOLLKEEPER_BODY_BYTES_MAX`.",
    "concurrency_limited": "Send fewer at once, or raise `concurrency` of the scope the message names.",
    "budget_exceeded": "Wait for `Retry-After`, or raise the budget; "
    "[budgets](../budgets.md) says what each is about.",
    "capacity_exceeded": "Wait for `retry-after`, or ask for a larger share; [capacity](../capacity.md).",
    "priority_not_allowed": "Claim `batch`, or have the API key's `priority` changed; "
    "[priorities](../capacity.md#priorities).",
    "run_exceeded": "Open another run, or ask its parent for less; [runs](../runs.md).",
    "run_ended": "Open another run; [runs](../runs.md).",
    "run_conflict": "Name the run by its id alone, or open another one.",
    "run_not_found": "Name a run of this tenant that is open, or ended within a day.",
    "too_many_jobs": "Wait until some are over, or cancel them; [jobs](../jobs.md#how-many-there-may-be).",
    "too_many_holds": "Settle or release holds that are done, and give others a shorter `ttl_s`.",
    "too_many_runs": "End runs that are done, and open others with a shorter `ttl`.",
    "hold_not_found": "Name an open hold of this tenant, or one of the last hour; [holds](../holds.md).",
    "hold_ended": "Take another hold; [holds](../holds.md).",
    "idempotency_conflict": "Send the first body again, use another key, or wait for the first request.",
    "quota_exceeded": "Wait for `Retry-After`, `tollkeeper tenant recharge`, or another plan.",
    "quota_held": "Try again in a second; calls in flight give back what they do not use.",
    "rate_limited": "Wait for `Retry-After`, or raise the limit of the scope the message names: "
    "the provider's where that is its upstream.",
    "upstream_credentials": "`tollkeeper doctor` says why an upstream's credentials cannot be had.",
    "upstream_unreachable": "Look at the upstream; `tollkeeper doctor` says whether it answers.",
    "upstream_timeout": "Look at the upstream, or raise the "
    "[deadline](../settings.md#deadlines-of-the-data-plane) that passed.",
    "counters_unavailable": "Look at Redis and the keeper: "
    "[after a restart of Redis](../howto/recover.md#redis-has-restarted).",
    "issuer_unavailable": "Look at the issuer; `tollkeeper doctor` says whether it answers. "
    "[Signed tokens](../issuers.md#keys-of-issuers).",
    "overloaded": "Add workers or gateways, or raise the "
    "[maximum](../settings.md#maxima-of-the-data-plane) in question.",
}


def refusals() -> list[str]:
    """Return the lines of the page that lists every reason for which a request or command is refused."""
    return [
        *REFUSALS.splitlines(),
        "",
        "| Status | Reason | What it says | What to do |",
        "|---|---|---|---|",
        *_reasons(errors.Refusal, HINTS),
        "",
        *ADMIN_REFUSALS.splitlines(),
        "| Status | Reason | What it says |",
        "|---|---|---|",
        *_reasons(errors.AdminRefusal, {}),
    ]


def _reasons(root: type[errors.TollkeeperError], hints: dict[str, str]) -> Iterator[str]:
    kinds = {kind for kind in _below(root) if kind.__module__ == errors.__name__ and "reason" in vars(kind)}
    for kind in sorted(kinds, key=lambda kind: (kind.status, kind.reason)):
        hint = f" {hints[kind.reason]} |" if hints else ""
        yield f"| {kind.status} | `{kind.reason}` | {_cell(_sentence(kind.__doc__))} |{hint}"


def _below(root: type[errors.TollkeeperError]) -> Iterator[type[errors.TollkeeperError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _below(kind)


def _sentence(text: str | None) -> str:
    """Return the first paragraph of a text on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _cell(text: str) -> str:
    """Return the text escaped for a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
