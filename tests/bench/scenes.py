"""Scenes of the bench: the calls of each, the account they use, and the contenders beside us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EVENTS = 400
CALLERS, ORGANIZATIONS = 2_048, 64  # a multiple, so that each caller is of one organization
EVERYONE = ("nginx", "envoy", "nginx-lua", "litellm")
LIMITER = ("nginx-lua",)
READERS = ("nginx", "envoy", "nginx-lua-reading")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is called.

    `account` is of ours: `ledger` has a quota; `limits` has limits of key, user, tenant and organization
    besides; `money` has a budget in money of each as well; one of `STEPS` has these steps in each budget. Ratios are to `peers` in the same round, or to
    those of the scene `beside`, which are sent the same. Where it is `flushing` our keeper goes on meanwhile.
    """

    name: str
    title: str
    account: str = "ledger"
    peers: tuple[str, ...] = ()
    beside: str = ""
    body_bytes: int = 1_000
    callers: int = 1
    organizations: int = 1
    events: int = 0
    flushing: bool = False


SCENES: Mapping[str, Scene] = {
    one.name: one
    for one in (
        Scene("ledger", "quota and ledger", peers=EVERYONE),
        Scene("limits", "and limits on four scopes", "limits", beside="ledger"),
        Scene("money", "and four budgets in money", "money", beside="ledger"),
        Scene("flushing", "the same, rows written meanwhile", "money", beside="ledger", flushing=True),
        Scene("callers", "limits, 2,048 callers of one organization", "limits", LIMITER, callers=CALLERS),
        Scene("organizations", "limits, 2,048 callers of 64 organizations", "limits", LIMITER,
              callers=CALLERS, organizations=ORGANIZATIONS),
        Scene("10kB", "quota and ledger, a body of 10 kB", peers=READERS, body_bytes=10_000),
        Scene("60kB", "quota and ledger, a body of 60 kB", peers=READERS, body_bytes=60_000),
        Scene("250kB", "quota and ledger, a body of 250 kB", peers=READERS, body_bytes=250_000),
        Scene("stream", "quota and ledger, an event of a stream of 400", peers=EVERYONE[:3], events=EVENTS),
    )
}  # fmt: skip

# Steps of each budget of an account that otherwise is that of `money`.
STEPS: Mapping[str, list[dict[str, object]]] = {
    "other steps": [{"at": 0, "models": {"claude-*": "claude-haiku-4-5"}}],
    "steps": [{"at": 1, "models": {"gpt-4o-*": "gpt-4.1-nano"}}],
    "substituted": [{"at": 0, "models": {"gpt-4o-*": "gpt-4.1-nano"}}],
}
# Budgets in money by account and name: what of an organization each is of. "groups" gets a group, and a key with a tag.
OWNERS: Mapping[str, Mapping[str, object]] = {
    "organization": {}, "tenant": {}, "user": {"each": "user"}, "key": {"each": "key"},
}  # fmt: skip
TAGS = {"feature": "search"}
BUDGETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    **dict.fromkeys(("money", *STEPS), OWNERS),
    "rolling": {"five hours": {"each": "user", "window": "rolling", "length": "5h"}},
    "groups": {
        "group": {},
        "member": {"each": "user"},
        "tag": {"tags": TAGS},
        "value": {"each": "tag:feature"},
    },
}
# Besides: what `hot` looks at alone.
HOT: Mapping[str, Scene] = {
    **SCENES,
    **{account: Scene(account, account, account) for account in (*STEPS, "rolling", "groups")},
    "users": Scene("users", "limits of 32 users by turns", "limits", callers=32),
}
