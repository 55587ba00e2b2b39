"""Models of the Admin API: who may make them, what they may say, and that gateways hear of them."""

from __future__ import annotations

from typing import Any

from tests.admin.conftest import Answer, Api

OPENAI = {"upstream": "openai"}


async def made(api: Api, **values: Any) -> Answer:
    return await api.post("models", {"targets": [OPENAI], **values})


async def test_a_model_is_made_changed_and_deleted(api: Api) -> None:
    asked = {"name": "gpt-4o", "targets": [{"upstream": "azure", "model": "prod"}, OPENAI]}
    model = (await made(api, **asked)).json
    assert (model["name"], model["prefix"], model["organization_id"]) == ("gpt-4o", None, None)
    assert model["targets"] == asked["targets"]
    assert model["fallback"] == ["unreachable", "429", "5xx", "credit"]
    assert (model["output_max"], model["context"]) == (None, None)
    changes = {"fallback": ["429"], "targets": [OPENAI], "output_max": 4_096, "context": 8_192}
    changed = (await api.patch(f"models/{model['id']}", changes)).json
    assert {name: changed[name] for name in changes} == changes
    assert (await api.patch(f"models/{model['id']}", {"context": 0})).status == 422
    assert (await api.delete(f"models/{model['id']}")).status == 204
    assert (await api.get("models")).json["items"] == []


async def test_model_created_by_prefix_equals_a_model_created_by_a_name_ending_in_a_star(api: Api) -> None:
    first = (await made(api, prefix="local/", targets=[{"upstream": "gpu", "model": "*"}])).json
    assert (first["name"], first["prefix"]) == ("local/*", "local/")
    second = (await made(api, name="gpt-*")).json
    assert (second["name"], second["prefix"]) == ("gpt-*", "gpt-")
    third = (await made(api, prefix="o3*", targets=[{"upstream": "gpu"}])).json
    assert (third["name"], third["prefix"]) == ("o3*", "o3")
    assert (await made(api, name="local/*")).status == 409


async def test_duplicate_model_name_within_an_organization_is_refused(api: Api) -> None:
    organization = await api.make("organizations", name="Acme")
    assert (await made(api, name="fast")).status == 201
    assert (await made(api, name="fast")).status == 409
    own = {"name": "fast", "organization_id": organization["id"]}
    assert (await made(api, **own)).status == 201
    assert (await made(api, **own)).status == 409


async def test_organization_admin_can_read_own_models_but_not_change_models(api: Api) -> None:
    here, there = [await api.make("organizations", name=name) for name in ("Acme", "Globex")]
    for name, owner in (("mine", here["id"]), ("theirs", there["id"]), ("all", None)):
        assert (await made(api, name=name, organization_id=owner)).status == 201
    token = await api.make("admin-tokens", name="a", role="admin", organization_id=here["id"])
    people = api.acting_as(token["token"])
    rows = (await people.get("models")).json["items"]
    assert [row["name"] for row in rows] == ["mine"]
    assert (await made(people, name="more", organization_id=here["id"])).status == 403
    assert (await people.delete(f"models/{rows[0]['id']}")).status == 403
