"""Who is woken finds on one dashboard what the runbook asks: each alert names its panel."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from gateway.telemetry.metrics import FACTS, PREFIX
from tests.deploy.test_rules import MONITORING, RUNBOOK, alerts
from tests.deploy.test_scrape import DASHBOARDS, names, queries, rules
from tests.tree import ROOT

ON_CALL = "On call: "


@cache
def panels() -> dict[str, set[str]]:
    """What each panel of the dashboard reads, recorded series as what they are made of; rows apart."""
    board = json.loads((MONITORING / "grafana" / "on_call.json").read_text())
    return {
        panel["title"]: {name for target in panel["targets"] for name in read(target["expr"])}
        for panel in board["panels"]
        if panel["type"] != "row"
    }


def read(query: str) -> set[str]:
    """The metrics that a query reads, behind whatever was worked out before."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    found: set[str] = set()
    for name in names(query):
        found |= read(recorded[name]) if name in recorded else {name}
    return found


def asked() -> dict[str, list[str]]:
    """The questions of the runbook, each with its alerts."""
    table = RUNBOOK.read_text().partition("| Panel of *On call* |")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    return {question: re.findall(r"\[(\w+)\]", told) for question, told in rows}


@pytest.mark.parametrize("name", sorted(alerts()))
def test_each_alert_names_a_panel_that_reads_what_it_reads(name: str) -> None:
    alert = alerts()[name]
    panel = alert["annotations"]["panel"].removeprefix(ON_CALL)
    assert panel in panels()
    assert read(alert["expr"]) <= panels()[panel]


def test_each_question_of_the_runbook_has_its_panel_and_each_panel_its_question() -> None:
    questions = asked()
    assert list(questions) == list(panels())
    by_alert = {name: question for question, told in questions.items() for name in told}
    named = {name: rule["annotations"]["panel"].removeprefix(ON_CALL) for name, rule in alerts().items()}
    assert by_alert == named


def test_what_the_runbook_has_one_look_at_is_on_a_dashboard() -> None:
    shown = {name for _, query in queries() for name in read(query)}
    bare = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in shown} | shown
    known = {PREFIX + fact.name for fact in FACTS}
    text = RUNBOOK.read_text().partition("\n## Alerts")[2]
    said = {name.removesuffix("_total") for name in re.findall(rf"{PREFIX}\w+", text)}
    assert said & known
    assert (said & known) - bare == set()


def test_each_panel_that_the_runbook_quotes_exists() -> None:
    titles = {panel["title"] for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]}
    text = RUNBOOK.read_text()
    quoted = re.findall(r'"((?:Requests|Refusals) by \w+)"', text)
    assert quoted
    assert set(quoted) <= titles


def test_panels_lie_beside_each_other() -> None:
    """None covers another, and all of a row fit into it."""
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{path.stem}: {panel['title']}"
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_each_refusal_that_is_not_the_callers_own_doing_has_its_alert() -> None:
    """Each with a 5xx status, as the reference has them, and those of capacity and limits of upstreams."""
    rows = (ROOT / "docs" / "reference" / "refusals.md").read_text().partition("## Of the Admin API")[0]
    ours = set(re.findall(r"^\| 5\d\d \| `(\w+)`", rows, re.MULTILINE))
    table = RUNBOOK.read_text().partition("| A caller gets | Alert |")[2].partition("\n\n")[0]
    told = {row.split(" | ")[0]: re.findall(r"\[(\w+)\]", row) for row in table.splitlines()[2:]}
    reasons = {reason for cause in told for reason in re.findall(r"`(\w+)`", cause)}
    assert reasons == ours | {"capacity_exceeded", "rate_limited"}
    assert all(named and set(named) <= set(alerts()) for named in told.values())
