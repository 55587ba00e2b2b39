"""Where nothing is served, an answer names the path that was probably meant."""

from __future__ import annotations

from tests.admin.conftest import Api
from tests.in_turn import in_turn

NOTHING = "There is nothing at this address."


@in_turn(
    ("path", "meant"),
    [
        ("tenant", "/admin/v1/tenants"),
        ("token_plans", "/admin/v1/token-plans"),
        ("tenants/", "/admin/v1/tenants"),
        ("tenant/12", "/admin/v1/tenants/{id}"),
        ("tenants/12/unblok", "/admin/v1/tenants/{id}/unblock"),
        ("nothing/like/it/at-all", ""),
        ("%25%7B", ""),
        ("tenants" + "x" * 200, ""),
    ],
)
async def test_the_nearest_path_is_named(api: Api, path: str, meant: str) -> None:
    answer = await api.get(path)
    assert answer.status == 404
    assert answer.json["detail"] == (f"{NOTHING} Did you mean {meant}?" if meant else NOTHING)


async def test_a_row_that_is_not_there_is_not_taken_for_a_wrong_path(api: Api) -> None:
    assert (await api.get("tenants/999999")).json["detail"] == NOTHING
