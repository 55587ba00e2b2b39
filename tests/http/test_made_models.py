"""A model that a call made is its organization's, as an id is: no other one calls it or sees its name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway.core.calls.routes import ModelRule, Route
from gateway.core.families.openai import FAMILY
from gateway.core.model import Caller
from tests.http.fakes import CALLER, ROUTES, answer, get
from tests.http.test_models import Pair, chat, paired, rule

OTHERS = replace(CALLER, organization_id=99)
TRAINED = "ft:gpt-4o-mini:bravo:plan:abc"
CHECKPOINT = f"{TRAINED}:ckpt-step-90"
JOB = {"id": "ftjob-1", "object": "fine_tuning.job", "fine_tuned_model": TRAINED}
STEPS = {"object": "list", "data": [{
    "object": "fine_tuning.job.checkpoint", "id": "ftckpt_1", "fine_tuned_model_checkpoint": CHECKPOINT,
}]}  # fmt: skip
MODELS = {"object": "list", "data": [{"id": one} for one in ("m", TRAINED, CHECKPOINT)]}
FREE = tuple(
    replace(one, upstream="up")
    for one in FAMILY.routes
    if "fine_tuning/jobs/" in one.path or "models" in one.path or one.path == "/v1/evals"
)
ROUTED: tuple[Route, ...] = (*ROUTES, *FREE)


@asynccontextmanager
async def trained() -> AsyncIterator[Pair]:
    """A stage where the first organization was told what its job made."""
    async with paired(rule("x/", ("up", "*"), prefix=True), routes=ROUTED) as pair:
        stage = pair.stage
        stage.objects.kept.add((CALLER.organization_id, "ftjob-1"))
        for path, said in ((b"", JOB), (b"/checkpoints", STEPS)):
            stage.upstream.scripts.append([answer(json.dumps(said).encode())])
            assert (await stage.ask(get(b"/v1/fine_tuning/jobs/ftjob-1" + path), "GET")).status == 200
        yield pair


async def asked(pair: Pair, caller: Caller, model: str, **more: object) -> int:
    pair.stage.directory.caller = caller
    return (await pair.ask(chat(model, **more))).status


@pytest.mark.parametrize("model", [TRAINED, CHECKPOINT, f"x/{TRAINED}"])
async def test_nobody_else_calls_a_trained_model(model: str) -> None:
    async with trained() as pair:
        assert await asked(pair, CALLER, model) == 200
        before = pair.asked
        assert await asked(pair, OTHERS, model) == 404
        assert await asked(pair, OTHERS, model.replace("ft:", "FT:")) == 404
        assert await asked(pair, OTHERS, "m", models=[model.removeprefix("x/")]) == 404
        for place in ("tools", "plugins", "new_field"):
            judges = [{"type": "advisor", "model": model.removeprefix("x/")}]
            assert await asked(pair, OTHERS, "m", **{place: judges}) == 404
        assert pair.asked == before


GRADERS = [
    {"type": "label_model", "model": TRAINED, "labels": ["a"]},
    {"type": "score_model", "model": TRAINED.upper()},
    {"type": "multi", "graders": {"one": {"type": "score_model", "model": CHECKPOINT}}},
]


@pytest.mark.parametrize("grader", GRADERS)
async def test_nobody_else_is_judged_by_a_trained_model(grader: dict[str, object]) -> None:
    body = json.dumps({"name": "e", "testing_criteria": [{"type": "string_check"}, grader]}).encode()
    async with trained() as pair:
        stage = pair.stage
        stage.objects.kept.add((CALLER.organization_id, TRAINED.upper()))
        for caller, models, status in (
            (OTHERS, None, 404), (CALLER, None, 200), (CALLER, frozenset({"m"}), 403),
            (CALLER, frozenset({"ft:*", "FT:*"}), 200),
        ):  # fmt: skip
            stage.directory.caller = replace(caller, models=models)
            stage.upstream.scripts = [[answer(b'{"id":"eval_1"}')]]
            got = await pair.ask(body, b"/v1/evals")
            assert got.status == status
            if status == 404:
                assert b"The field is testing_criteria.1." in got.body


async def test_a_model_of_another_organization_judges_in_no_stored_body() -> None:
    own = rule("secret", ("up", "m"), organization_id=CALLER.organization_id)
    body = json.dumps(
        {"name": "e", "testing_criteria": [{"type": "label_model", "model": "secret"}]}
    ).encode()
    async with paired(own, routes=ROUTED) as pair:
        for caller, status in ((OTHERS, 403), (CALLER, 200)):
            pair.stage.directory.caller = caller
            pair.stage.upstream.scripts = [[answer(b'{"id":"eval_1"}')]]
            assert (await pair.ask(body, b"/v1/evals")).status == status


@pytest.mark.parametrize("caller", [CALLER, OTHERS])
async def test_a_list_of_models_shows_each_its_own(caller: Caller) -> None:
    async with trained() as pair:
        stage, is_own = pair.stage, caller is CALLER
        stage.directory.caller = caller
        stage.upstream.scripts.append([answer(json.dumps(MODELS).encode())])
        got = await stage.ask(get(b"/v1/models"), "GET")
        shown = [one["id"] for one in json.loads(got.body)["data"]]
        assert shown == (["m", TRAINED, CHECKPOINT] if is_own else ["m"])
        one = await stage.ask(get(b"/v1/models/" + TRAINED.encode()), "GET")
        assert one.status == (200 if is_own else 404)


@pytest.mark.parametrize(
    ("configured", "model"),
    [
        (rule("own", ("up", TRAINED)), "own"), (rule(TRAINED, ("up", "")), TRAINED),
        (rule("ft:gpt-4o-mini:bravo:", ("up", "*"), prefix=True), TRAINED),
    ],
)  # fmt: skip
async def test_the_configuration_gives_a_trained_model_to_others(configured: ModelRule, model: str) -> None:
    for whose, status in ((0, 200), (OTHERS.organization_id, 200), (CALLER.organization_id, 403)):
        own = replace(configured, organization_id=whose)
        async with paired(own, routes=ROUTED) as pair:
            assert await asked(pair, OTHERS, model) == status
