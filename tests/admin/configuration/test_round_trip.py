"""What is written down of an installation changes nothing there, and makes the same of an empty one."""

from __future__ import annotations

from gateway.admin.configuration.words import KINDS, model, word
from gateway.admin.resources.registry import RESOURCES
from tests.admin.configuration.world import WORLD, apply, exported, plan, world
from tests.admin.conftest import Api, empty

# What can be made and is no configuration, and why.
OTHERS = {
    "admin-tokens": "credentials of people and programs that administer",
    "credit-additions": "money that moves",
    "invoices": "documents",
    "amendments": "corrections of what was used",
}


def test_whatever_can_be_made_is_configuration_or_says_why_not() -> None:
    made = {resource.name for resource in RESOURCES.values() if resource.create is not None}
    assert made == KINDS.keys() | OTHERS.keys()
    assert not KINDS.keys() & OTHERS.keys()


def test_the_example_says_every_field_of_every_kind() -> None:
    for kind, resource in KINDS.items():
        said = {name for one in WORLD[kind] for name in one}
        told = {word(resource, name) for name in model(resource).model_fields}
        assert told - said <= UNSAID.get(kind, set()), kind


# What says the same as others of its kind do, or cannot stand together with them.
UNSAID = {
    "prices": {"cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output",
               "image_input", "image_output", "source"},
    "budgets": {"user", "project_id", "anchor_day"},
    "token-plans": {"rollover_max", "admission", "on_exhausted", "on_store_failure"},
    "organization-subscriptions": {"end_date", "trial_end", "negotiated_cost", "overage_unit_price",
                                   "discount_end"},
    "business-models": {"description"},
}  # fmt: skip


async def test_what_is_exported_changes_nothing_there_and_makes_the_same_elsewhere(api: Api) -> None:
    made = await apply(api, world())
    assert made["applied"]
    again = await plan(api, world())
    assert (again["changes"], again["noted"]) == ([], 0), "applying again does nothing"

    first = await exported(api)
    assert first["left_out"] == []
    assert first["objects"].keys() == KINDS.keys()
    there = await plan(api, first["objects"], name="of the export")
    assert there["changes"] == []

    empty(api.url)
    assert (await apply(api, first["objects"]))["applied"]
    second = await exported(api)
    for kind in KINDS:
        assert second["objects"][kind] == first["objects"][kind], kind
    assert (await plan(api, first["objects"]))["changes"] == []


async def test_prices_of_the_bundled_list_and_users_met_by_requests_are_not_exported(api: Api) -> None:
    bundled = {"model": "of-the-list", "currency": "USD", "input": "1", "source": "bundled"}
    await api.make("prices", **bundled, effective_from="2026-01-01T00:00:00Z")
    organization = (await api.make("organizations", name="Acme"))["id"]
    for name in ("met", "limited"):
        api.rows(
            "insert into app_user (organization_id, external_id, first_sight) values (%s, %s, true)",
            organization, name,
        )  # fmt: skip
    [limited] = (await api.get("users?external_id=limited")).json["items"]
    await api.patch(f"users/{limited['id']}", {"limits": {"concurrency": 1}})
    objects = (await exported(api))["objects"]
    assert "of-the-list" not in {one["model"] for one in objects.get("prices", ())}
    assert [one["external_id"] for one in objects["users"] if one.get("organization")] == ["limited"]


async def test_what_files_cannot_name_is_left_out_and_said(api: Api) -> None:
    tenant = await api.make("tenants", name="Web")
    twice = [await api.make("api-keys", name="Twice", tenant_id=tenant["id"]) for _ in range(2)]
    its = {"organization_id": tenant["organization_id"], "api_key_id": twice[0]["id"], "interval": "day"}
    await api.make("budgets", name="Of one", unit="tokens", amount=5, **its)
    found = await exported(api)
    assert [line.partition(":")[0] for line in found["left_out"]] == [
        *(f"api-keys {one['id']} (Twice)" for one in twice),
        "budgets 1 (Of one)",
    ]
    assert not found["objects"].keys() & {"api-keys", "budgets"}
