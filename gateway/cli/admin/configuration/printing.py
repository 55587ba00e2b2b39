"""How plans are shown: a line a row and a line a field for people, JSON for programs."""

from __future__ import annotations

import json
from collections import Counter

from gateway.cli.admin.client import Json
from gateway.cli.admin.configuration.sources import Sources
from gateway.cli.admin.output import console, escape, print_json, say

SHOWN_MAX = 1_000
MARKS = {"create": ("green", "+"), "delete": ("red", "-")}
CHANGED = ("yellow", "~")


def plan(found: Json, wanted: Sources, *, as_json: bool) -> None:
    """Show what would be done; nothing is shown of what is as it should be."""
    if as_json:
        for each in found["changes"]:
            each["at"] = wanted.located(each["at"])
        print_json(found)
        return
    out = console()
    for each in found["changes"][:SHOWN_MAX]:
        out.print(_line(each), highlight=False, soft_wrap=True)
    more = len(found["changes"]) - SHOWN_MAX
    if more > 0:
        out.print(f"and {more:,} more", highlight=False)
    for each in found["taken"]:
        line = f"{escape(each['resource'])} {escape(each['name'])}: {each['id']}, which no file made"
        out.print(f"[yellow]=[/] takes {line}", highlight=False, soft_wrap=True)
    more = found["taken_count"] - len(found["taken"])
    if more > 0:
        out.print(f"and takes {more:,} more", highlight=False)
    out.print(_summary(found), highlight=False)
    if found["changes"] and not found["tried"] and not found["applied"]:
        say("It was compared, not tried: what PostgreSQL or its rules refuse shows when it is applied.")


def done(found: Json, *, as_json: bool) -> None:
    """Show what was done, behind its plan."""
    if as_json:
        print_json(found)
        return
    say("Applied.")
    for each in found["secrets"]:
        say(f"The secret of {escape(each['resource'])} {escape(each['name'])} is in {escape(each['path'])}.")
    if found["pending"]:
        say("Stored; not all of it is in force yet: gateways are told within seconds, once Redis answers.")


def _line(each: Json) -> str:
    colour, mark = MARKS.get(each["change"], CHANGED)
    lines = [f"[{colour}]{mark}[/] {escape(each['resource'])} {escape(each['name'])}"]
    for name, change in each["fields"].items():
        before, after = _value(change["before"]), _value(change["after"])
        said = after if each["change"] == "create" else f"{before} → {after}"
        lines.append(f"    {escape(name)}: {escape(said)}")
    if each["stays"]:
        lines.append(f"    stays: {escape(each['stays'])}")
    return "\n".join(lines)


def _kind_of(each: Json) -> str:
    if each["stays"]:
        return "waits" if each["at"] else "stays"
    return each["change"] if each["change"] in MARKS else "change"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _summary(found: Json) -> str:
    counts = Counter(map(_kind_of, found["changes"]))
    gone = f", {found['forgotten']:,} that apply made are gone already" if found["forgotten"] else ""
    if not counts:
        return f"Nothing to change: {found['unchanged']:,} are as they should be{gone}."
    told = f"{counts['create']:,} to make, {counts['change']:,} to change, {counts['delete']:,} to delete"
    stays = f", {counts['stays']:,} stay although no file says them" if counts["stays"] else ""
    stays += f", {counts['waits']:,} cannot be" if counts["waits"] else ""
    return f"{told}{stays}; {found['unchanged']:,} are as they should be{gone}."
