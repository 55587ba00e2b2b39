"""Forty-five typing mistakes at the command line: each answer says what would be right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.admin.conftest import Api
from tests.admin.test_cli import Run, run

__all__ = ["run"]

NOWHERE = "01890000-0000-7000-8000-000000000000"
WHOLE, DECIMAL = "a whole number such as 250000, 250,000 or 5M", "must be a decimal, such as"
HELP = "Try '.* --help' for help"
# What is typed, and the way out that its answer says.
MISTAKES = {
    "tenant show Sarch": "did you mean 'Search'",
    "tenant show Twin": r"give one of their ids, \d+, \d+",
    "tenant show Nobody-like-this": "give its whole name, or its id",
    "org show Acmee": "did you mean 'Acme'",
    "tenant create x --plan Opne": "did you mean 'Open'",
    "tenant create x --org Acmee": "did you mean 'Acme'",
    "tenant create Search --org Acme": r"already exists \(organization_id, name\)",
    "tenant create x --rpm many": f"--rpm must be {WHOLE}",
    "tenant create x --total 5": HELP,
    "tenants list": "Did you mean 'tenant'",
    "tenant lst": "Did you mean 'list'",
    "budgets list": "Did you mean 'budget'",
    "budget create Acme a money -5 day": f"--amount: {DECIMAL}",
    "budget create Acme a money five day": f"--amount: {DECIMAL}",
    "budget create Acme a money 5 daily": "--interval: .*'hour', 'day'",
    "budget create Acme a dollars 5 day": "--unit: .*'money', 'tokens' or 'requests'",
    "budget create Acme a money 5 day --tenant Serch": "did you mean 'Search'",
    "budget create Acme a money 5 day --each person": "--each: must be user, key, .* or tag:NAME",
    "key create Serch laptop": "did you mean 'Search'",
    "key create Search laptop --expires tomorrow": "Possible options: --expires-at",
    "key revoke laptop": "`tollkeeper key list` has all",
    "key show 999": "`tollkeeper key list` shows all",
    "plan create P --total lots": f"--total must be {WHOLE}",
    "plan create P --total 5 --reset day": "'none', 'daily', 'weekly', 'monthly'",
    "credits add Acme ten": f"must be {WHOLE}",
    "usage --by colour": "must be some of organization, tenant, user",
    "usage --from 01/11/2026": "a day such as 2026-01-31",
    "usage --from yesterday": "a day such as 2026-01-31",
    "price quote gpt-9": "The list of prices has those that there are",
    "price quote gpt-4o --currency EUR": "no price in EUR .* The list of prices",
    "explain abc": HELP,
    f"explain {NOWHERE}": "A row is written within seconds",
    "invoice create Acme --month 2026-13": "--month must be such as 2026-04",
    "invoice create Acme --from 2026-04-01": "--from and --to together",
    "invoice finalize 999": "`tollkeeper invoice list` shows all",
    "apply -f DIR/none.yaml": "cannot be read: No such file",
    "apply -f DIR/field.yaml": "line 3, tenants, organisation: unknown field; did you mean organization",
    "apply -f DIR/broken.yaml": "line 2: not valid YAML",
    "apply DIR/field.yaml": "Missing option '--file'",
    "org create Acme": r"already exists \(name\)",
    "org create New --currency DOLLARS": "--currency: must be an ISO 4217 code, such as",
    "webhook create ftp://x": "--url: must begin with https://",
    "user create": r"Missing argument EXTERNAL \(--external\)",
    "report revenue --from 2026": "must be a month, such as 2026-04",
    "exchange-rate create EUR USD 0,92": f"--rate: {DECIMAL}",
}


async def test_cli_answers_each_mistyped_command_with_advice_and_exit_code_1_or_2(
    run: Run, api: Api, tmp_path: Path
) -> None:
    owners = [await api.make("organizations", name=name) for name in ("Acme", "Bolt")]
    await api.make("token-plans", name="Open", total_amount=1000)
    await api.make("tenants", name="Search", organization_id=owners[0]["id"])
    for each in owners:
        await api.make("tenants", name="Twin", organization_id=each["id"])
    (tmp_path / "field.yaml").write_text("tenants:\n- name: a\n  organisation: Acme\n")
    (tmp_path / "broken.yaml").write_text("tenants: [\n")
    lost = []
    for typed, way_out in MISTAKES.items():
        result = await run(*shlex.split(typed.replace("DIR", str(tmp_path))))
        said = " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
        if result.exit_code not in {1, 2} or re.search(way_out, said) is None:
            lost.append(f"{typed}: {result.exit_code} {said}")
    assert lost == []
