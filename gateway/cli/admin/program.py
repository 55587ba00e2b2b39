"""All administration commands: those generated from resources, and hand-written ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.admin import commands, described
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.output import AsJson, admin, print_json, report, row, rows, say, steps, waiting
from gateway.cli.admin.replay import replay
from gateway.cli.admin.sections import section_of
from gateway.core.accounts.administration import LETTERS_S_MAX
from gateway.core.times import rfc3339
from gateway.feature import features

if TYPE_CHECKING:
    from gateway.core.billing.price_changes import PriceChange

# `tollkeeper invoice create, show, run`: a draft for a month, its documents, and a month's invoices of all.

COLUMNS = (
    "id", "number", "kind", "status", "payment_status", "due_date", "organization_id", "customer",
    "period_start", "period_end", "currency", "total_amount", "amount_due",
)  # fmt: skip
LINE_COLUMNS = ("position", "kind", "description", "quantity", "unit_price", "amount")
ORGANIZATIONS_MAX = 1_000_000
INVOICES_MAX = 1_000

Invoice = Annotated[int, typer.Argument(metavar="INVOICE", help="Its id.")]
Month = Annotated[str | None, typer.Option("--month", help="Such as 2026-04; by default the last one.")]


def create(
    organization: Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")],
    *,
    month: Month = None,
    start: Annotated[str | None, typer.Option("--from", help="The first day, instead of a month.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="The day after the last.")] = None,
    source: Annotated[
        str | None, typer.Option(help="A one-off invoice of this source alone, such as credit_addition.")
    ] = None,
    source_id: Annotated[int | None, typer.Option(help="Of one of them only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a draft invoice for a month, for days of your own, or for one source, which needs no period."""
    with admin() as api:
        if source is not None:
            if start or month:
                raise CommandFailed("A one-off invoice begins with what is owed: give --to alone, or none.")
            sent = {"source": source, "source_id": source_id, "period_end": end}
            owner = {"organization_id": api.id_of("organizations", organization)}
            made = api.post("invoices", owner | {name: value for name, value in sent.items() if value})
            report(made, "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)
            return
        if source_id or (start is None) != (end is None) or (start and month):
            raise CommandFailed("Give --month, or --from and --to together, or --source.")
        period = (start, end) if start and end else _month(month)
        made = _create(api, api.id_of("organizations", organization), period)
        report(made, "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)


def show(
    invoice: Invoice,
    *,
    pdf: Annotated[Path | None, typer.Option(help="Write the PDF here.")] = None,
    xml: Annotated[Path | None, typer.Option(help="Write the electronic invoice here: Factur-X.")] = None,
    ubl: Annotated[Path | None, typer.Option(help="Write it as UBL here.")] = None,
    xrechnung: Annotated[Path | None, typer.Option(help="Write it as XRechnung here.")] = None,
    peppol: Annotated[Path | None, typer.Option(help="Write it for Peppol here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the lines here.")] = None,
    usage: Annotated[Path | None, typer.Option(help="Write every use that it bills here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show an invoice, or write its documents."""
    with admin() as api:
        report(api.get(f"invoices/{invoice}"), "Lines", LINE_COLUMNS, inner="lines", as_json=as_json)
        asked = (
            (pdf, ".pdf"), (xml, ".xml"), (ubl, ".xml?format=ubl"), (csv, ".csv"), (usage, "/usage.csv"),
            (xrechnung, ".xml?profile=xrechnung"), (peppol, ".xml?profile=peppol"),
        )  # fmt: skip
        for path, suffix in asked:
            if path is not None:
                path.write_bytes(api.download(f"invoices/{invoice}{suffix}"))
                say(f"Written: {path}")


def run(
    *,
    month: Month = None,
    draft: Annotated[bool, typer.Option("--draft", help="Leave drafts, to be looked at first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Invoice a month for all organizations; a second run continues where the first one stopped."""
    with admin() as api:
        period = _month(month)
        organizations = api.items("organizations", ORGANIZATIONS_MAX)
        done: list[Json] = []
        failed = 0
        with steps(len(organizations), f"Invoices from {period[0]}") as step:
            for organization in organizations:
                name = organization["name"]
                try:
                    invoice = _one_of_run(api, int(organization["id"]), period, draft=draft)
                except CommandFailed as refusal:
                    failed += 1
                    step(f"{name}: {refusal.message}")
                    continue
                if invoice is None:
                    step(f"{name}: nothing to bill")
                    continue
                done.append(invoice)
                named = invoice["number"] or f"draft {invoice['id']}"
                step(f"{name}: {named}, {invoice['currency']} {invoice['total_amount']}")
        rows(done, COLUMNS, as_json=as_json, title=f"Invoices from {period[0]} to {period[1]}")
        if failed:
            raise CommandFailed(f"{failed} of {len(organizations)} organizations are left; run it again.")


def _one_of_run(api: AdminClient, owner: int, period: tuple[str, str], *, draft: bool) -> Json | None:
    """Return the organization's invoice of the period: an existing one, or a new one.

    Unless `draft`, the invoice is finalized. Return None if there is nothing to bill: the empty draft is
    deleted, and uses no number.
    """

    def is_of_period(invoice: Json) -> bool:
        is_valid = invoice["corrects_id"] is None and invoice["status"] != "void"
        return is_valid and (invoice["period_start"], invoice["period_end"]) == period

    existing = next(filter(is_of_period, api.items("invoices", INVOICES_MAX, organization_id=owner)), None)
    invoice = existing or _create(api, owner, period)
    if existing and invoice["status"] == "draft":
        invoice = api.post(f"invoices/{invoice['id']}/recompute")
    if invoice["status"] == "draft" and not invoice["lines"]:
        api.delete(f"invoices/{invoice['id']}")
        return None
    if draft or invoice["status"] == "finalized":
        return invoice
    return api.post(f"invoices/{invoice['id']}/finalize")


def _create(api: AdminClient, owner: int, period: tuple[str, str]) -> Json:
    start, end = period
    return api.post("invoices", {"organization_id": owner, "period_start": start, "period_end": end})


def _month(text: str | None) -> tuple[str, str]:
    """Return the first day of a month and of the next one, in ISO format; the default is the last month."""
    today = datetime.now(UTC).date()
    year, month = (today.year, today.month - 1) if today.month > 1 else (today.year - 1, 12)
    if text is not None:
        if re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text) is None:
            raise CommandFailed(f"--month must be such as 2026-04, not {text!r}.")
        year, month = int(text[:4]), int(text[5:])
    following = date(year + month // 12, month % 12 + 1, 1)
    return date(year, month, 1).isoformat(), following.isoformat()


# `tollkeeper letters redrive` and `release`: one decision for all entries that a filter finds.

# Maximum of passes: one letter may depend on another that is stored in the same pass.
PASSES_MAX = 5

Reason = Annotated[str, typer.Option("--reason", help="The reason, stored with each.")]
Org = Annotated[str | None, typer.Option("--org", help="Only of this organization.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Only of this tenant.")]


def redrive(
    *,
    reason: Reason,
    org: Org = None,
    tenant: Tenant = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only of this partition.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store all dead letters where they belong, as they are; exit 1 if any is left."""
    _decide({"what": "dead_letters", "reason": reason, "partition": partition}, org, tenant, as_json=as_json)


def release(
    *,
    reason: Reason,
    org: Org = None,
    tenant: Tenant = None,
    kind: Annotated[str | None, typer.Option(help="gap, conflict, unknown_account or behind.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="List what is missing as lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Release all accounts in quarantine; exit 1 if any is left."""
    sent = {"what": "quarantine", "reason": reason, "kind": kind, "accept": accept or None}
    _decide(sent, org, tenant, as_json=as_json)


def _decide(sent: dict[str, Any], org: str | None, tenant: str | None, *, as_json: bool) -> None:
    """Send a decision on dead letters of an organization or tenant; print those left and exit with 1."""
    with admin() as api:
        for name, resource, given in (
            ("organization_id", "organizations", org), ("tenant_id", "tenants", tenant),
        ):  # fmt: skip
            sent |= {name: api.id_of(resource, given)} if given is not None else {}
        sent = {name: value for name, value in sent.items() if value is not None}
        with waiting("Deciding"):
            done, refused = decide_all(api, sent)
        report({"done": done, "items": refused}, "Left as they are", as_json=as_json)
        if refused:
            raise typer.Exit(1)


def decide_all(api: AdminClient, sent: Json) -> tuple[int, list[Json]]:
    """Send the decision `sent` on all dead letters repeatedly until no further one succeeds.

    Return the number of letters decided, and the refused ones.
    """
    # Each call may take `LETTERS_S_MAX` longer than others.
    api = replace(api, timeout_s=LETTERS_S_MAX + api.timeout_s)
    done = 0
    refused: list[Json] = []
    for _ in range(PASSES_MAX):
        answer, refused = _pass(api, sent)
        done += len(answer)
        if not (answer and refused):
            break
    return done, refused


def _pass(api: AdminClient, sent: Json) -> tuple[list[int], list[Json]]:
    """Send the decision `sent` on all dead letters once; return the decided ids and the refused letters."""
    done: list[int] = []
    refused: list[Json] = []
    after = 0
    while True:
        answer = api.post("letters", {**sent, "after_id": after})
        done += answer["done"]
        refused += answer["refused"]
        if answer["next_after_id"] is None:
            return done, refused
        after = answer["next_after_id"]


# `tollkeeper reconcile`: compares the counters with the ledger.

# No faults: rows not stored yet, a budget's window that is full, rows not compared for lack of time.
_NO_FAULTS = frozenset({"lag", "full", "unasked"})


def reconcile(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Correct drifts by appended rows.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Ask rows whether they agree in up to ten minutes, not one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every account now; exit 1 if any is wrong."""
    with admin() as api:
        with waiting("Comparing every account"):
            found = api.post("reconciliation", {"repair": repair, "whole": whole})
        report(found, "Accounts that differ", as_json=as_json)
        # With `--whole`, rows that were not compared count as a fault.
        fine = _NO_FAULTS - {"unasked"} if whole else _NO_FAULTS
        if any(item["kind"] not in fine for item in found["items"]):
            raise typer.Exit(1)


# `tollkeeper counters rebuild`: rebuilds accounts that no program can read.
def rebuild(organization: Annotated[str, typer.Argument(metavar="ORG")], *, as_json: AsJson = False) -> None:
    """Rewrite the accounts of an organization that cannot be read, from rows; all others stay as they are."""
    with admin() as api:
        sent = {"organization_id": api.id_of("organizations", organization)}
        with waiting("Rebuilding"):
            counts = api.post("counters", sent)
        row(counts, as_json=as_json)


# `tollkeeper prices diff`: compares the bundled price list with the database.

PRICE_COLUMNS = ("change", "provider", "model", "match", "effective_from", "says")
PRICES_READ_MAX = 1_000_000
NAMING = ("provider", "model", "match", "currency")
APPLIED_AS = "bundled-price-list"


def prices_section() -> typer.Typer:
    """Return the commands for the price list as a whole."""
    made = typer.Typer(no_args_is_help=True, help="The bundled price list.")

    @made.callback()
    def about() -> None:
        """Compare the bundled price list with the database."""

    made.command("diff")(diff)
    return made


def diff(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Take the differences over, as new prices.")] = False,
    since: Annotated[
        str | None, typer.Option("--from", help="When they come into force; RFC 3339. By default now.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    left_out: Annotated[
        bool, typer.Option("--left-out", help="Show what the list has and prices cannot express.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the bundled price list and the database differ; prices missing in the list stay in force."""
    from gateway.core.billing.price_book import BUNDLED, folded  # only asked here
    from gateway.core.billing.price_changes import changes
    from gateway.run.bundled_prices import read_bundle

    with admin() as api:
        at = _read_moment(since)
        with waiting("Reading the list"):
            bundle = read_bundle()
            if left_out:
                _print_left_out(bundle.left_out, as_json=as_json)
                return
            kept = [_read(row) for row in api.items("prices", PRICES_READ_MAX, source=BUNDLED)]
        found = [
            change
            for change in changes(bundle.rows, kept, at)
            if provider is None or change.row["provider"] == folded(provider)
        ]
        rows(
            [_render_change(change, as_json=as_json) for change in found],
            PRICE_COLUMNS,
            as_json=as_json,
            title=bundle.library,
        )
        if apply:
            _take_over(api, [change for change in found if change.kind != "gone"])


def _take_over(api: AdminClient, changes: Sequence[PriceChange]) -> None:
    """Create all prices in one transaction, so that gateways read the price book once."""
    from gateway.cli.admin.configuration import TIMEOUT_S, WHERE  # only asked here
    from gateway.core.billing.price_book import BUNDLED
    from gateway.core.billing.price_changes import AMOUNTS

    prices = [
        {
            **{name: change.row[name] for name in AMOUNTS if change.row.get(name) is not None},
            **{name: change.row[name] for name in NAMING},
            "source": BUNDLED, "effective_from": rfc3339(change.at),
        }
        for change in changes
    ]  # fmt: skip
    if prices:
        asked = {"objects": {"prices": prices}, "name": APPLIED_AS}
        patient = replace(api, timeout_s=TIMEOUT_S)
        with waiting("Taking over"):
            plan = patient.post(WHERE, asked)
            done = patient.post(WHERE, {**asked, "digest": plan["digest"]})
        if done["pending"]:
            say("They are stored, and in force as soon as Redis is back.")
    say(f"{len(changes)} prices were taken over.")


def _render_change(change: PriceChange, *, as_json: bool) -> Json:
    says: Any = {name: {"before": was, "after": becomes} for name, (was, becomes) in change.says.items()}
    if not as_json:
        texts = [f"{name} {_cell(pair['before'])} → {_cell(pair['after'])}" for name, pair in says.items()]
        says = ", ".join(texts)
    names = {name: change.row[name] for name in NAMING}
    return {"change": change.kind, **names, "effective_from": rfc3339(change.at), "says": says}


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _print_left_out(left_out: Sequence[str], *, as_json: bool) -> None:
    lines = sorted(set(left_out))
    if as_json:
        print_json({"left_out": lines})
        return
    rows([{"model": model, "left_out": what} for model, _, what in (line.partition(": ") for line in lines)],
         ("model", "left_out"), as_json=False)  # fmt: skip


def _read(row: Json) -> Json:
    return {**row, "effective_from": datetime.fromisoformat(row["effective_from"])}


def _read_moment(since: str | None) -> datetime:
    """Return the time of `--from`; now without one."""
    if since is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise CommandFailed("--from must be a time such as 2026-01-31T00:00:00Z.") from error
    if at.tzinfo is None:
        raise CommandFailed("--from must name its time zone, such as 2026-01-31T00:00:00Z.")
    return at.astimezone(UTC)


# Commands in other modules: the module, and its function or the function that returns the section.
_ELSEWHERE = {
    "apply": ("configuration", "apply"), "diff": ("configuration", "diff"),
    "export": ("configuration", "export"), "usage": ("usage", "usage"), "top": ("usage", "top"),
    "explain": ("explain", "explain"),
}  # fmt: skip
# Hand-written commands for generated sections.
_HERE = {
    "invoice": (create, show, run), "letters": (redrive, release), "budget": (replay,), "counters": (rebuild,),
}  # fmt: skip


def mount(app: typer.Typer, asked: Collection[str] | None = None) -> None:
    """Add the administration commands to the program: all, or those that `asked` may name.

    A known word loads only its own module; any other word may be a feature's, or a mistake.
    """
    made = commands.mount(app, asked)
    for section, functions in _HERE.items():
        for function in functions:
            made[section].command(function.__name__)(function)
    made["reconciliation"].command("run")(reconcile)
    app.add_typer(prices_section(), name="prices")
    app.command("reconcile")(reconcile)
    sections = {name: make for feature in features() for name, make in feature.admin_sections.items()}
    own = {*_ELSEWHERE, *sections, "prices", "reconcile", *map(section_of, described.resources())}
    own |= {one.name for one in described.reports()}
    is_own = asked is not None and own.issuperset(asked)
    for name, (module, attribute) in _ELSEWHERE.items():
        if not is_own or name in (asked or ()):
            attribute_ = getattr(import_module(f"gateway.cli.admin.{module}"), attribute)
            app.command(name)(attribute_)
    for name, make_section in sections.items():
        if not is_own or name in (asked or ()):
            app.add_typer(make_section(), name=name)
    for feature in features():
        feature.admin_commands(app)
