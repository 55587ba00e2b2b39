"""Configured models: which upstreams serve a model's name, in which order, and for which organizations.

Pure. Callers, lists of keys, budgets and the journal all use the configured name. A target has the upstream's
own name. If a name is configured for some organizations only, no other may call it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gateway.core.billing.price_book import folded
from gateway.core.calls.call import CallRequest
from gateway.core.calls.routes import EVERYBODY, ModelRule, ModelTarget, UpstreamTarget
from gateway.core.families.costs import SAFE, tool_costs
from gateway.core.families.tools import kinds_of
from gateway.errors import InvalidRequest, ModelNotAllowed


def conflict(rules: Sequence[ModelRule]) -> tuple[ModelRule, ModelRule] | None:
    """Return two rules for the same name and organization, or None."""
    seen: dict[tuple[str, bool, int], ModelRule] = {}
    for rule in rules:
        known = seen.setdefault(rule.claim, rule)
        if known is not rule:
            return known, rule
    return None


class ModelTable:
    """The configured models of one worker. Their names ignore case.

    An exact name goes before prefixes, a longer prefix before a shorter one, and an organization's own rule
    before everybody's.
    """

    def __init__(self, rules: Sequence[ModelRule] = ()) -> None:
        self.rules = tuple(rules)
        self._exact: dict[str, dict[int, ModelRule]] = {}
        prefixes: dict[str, dict[int, ModelRule]] = {}
        for rule in self.rules:
            kind = prefixes if rule.prefix else self._exact
            kind.setdefault(folded(rule.name), {}).setdefault(rule.organization_id, rule)
        self._prefixes = sorted(prefixes.items(), key=lambda pair: -len(pair[0]))

    def find(self, model: str, organization_id: int) -> ModelRule | None:
        """Return the configured rule for a model name and an organization, or None if no rule has that name.

        Raise `ModelNotAllowed` if the closest rule is for other organizations alone, even if a
        shorter prefix fits.
        """
        owners = self._claim(folded(model))
        if owners is None:
            return None
        own = owners.get(organization_id) or owners.get(EVERYBODY)
        if own is None:
            raise ModelNotAllowed(f"This organization may not use the model {model}.")
        return own

    def names_itself(self, model: str, organization_id: int, begins: tuple[str, ...]) -> bool:
        """Return whether the configured name or prefix that matches a model starts with one of `begins`."""
        rule = self.find(model, organization_id)
        return rule is not None and folded(rule.name).startswith(begins)

    def names(self, organization_id: int) -> list[str]:
        """Return the exact names of models that an organization may use, in their configured order."""
        return [
            rule.name
            for owners in self._exact.values()
            if (rule := owners.get(organization_id) or owners.get(EVERYBODY)) is not None
        ]

    def _claim(self, model: str) -> Mapping[int, ModelRule] | None:
        exact = self._exact.get(model)
        if exact is not None:
            return exact
        for name, owners in self._prefixes:
            if model.startswith(name) and len(model) > len(name):
                return owners
        return None


class ConfiguredModels:
    """The models of a worker: `written` in its file, and `told`, which returns those of the Admin API."""

    def __init__(
        self, written: Sequence[ModelRule] = (), told: Callable[[], tuple[ModelRule, ...]] = tuple
    ) -> None:
        self._written, self._told = tuple(written), told
        self._known: tuple[ModelRule, ...] = ()
        self._table = ModelTable(self._written)

    def table(self) -> ModelTable:
        """Return the current table of all models. If a name is configured twice, the file's rule counts."""
        told = self._told()
        if told is not self._known:
            self._known, self._table = told, ModelTable((*self._written, *told))
        return self._table

    def upstreams(self) -> frozenset[str]:
        return frozenset([target.upstream for rule in self.table().rules for target in rule.targets])


NO_MODELS: Final = ConfiguredModels()


def fitting(
    rule: ModelRule, asked: str, family: str, upstreams: Mapping[str, UpstreamTarget]
) -> tuple[ModelTarget, ...]:
    """Return the upstreams of a model that have the API `family` of a call, each with its model name.

    `asked` is the name in the call. Raise `InvalidRequest` if there is none.
    """
    model_targets: list[ModelTarget] = []
    spoken: list[str] = []
    for target in named_by(rule, asked):
        there = upstreams.get(target.upstream)
        if there is not None and there.by_model and target not in rule.targets:
            check_word(target.model)
        if there is not None and there.family and there.family != family:
            spoken.append(there.family)
        elif there is not None:
            model_targets.append(target)
    if not model_targets:
        speaks = (
            f"speaks another API ({', '.join(sorted(set(spoken)))})" if spoken else "has no upstream here"
        )
        raise InvalidRequest(f"The model {asked} {speaks}: it cannot be called at this path.", param="model")
    return tuple(model_targets)


def check_word(model: str) -> None:
    """Raise `InvalidRequest` if a model's name, as a caller writes it, cannot be one segment of a path."""
    if model in {".", ".."} or "/" in model or "\\" in model:
        raise InvalidRequest(
            f"The model {model} cannot stand in its upstream's path: it needs a name without / and \\.",
            param="model",
        )


def named_by(rule: ModelRule, asked: str) -> tuple[ModelTarget, ...]:
    """Return all targets of a model, each with the model's name there."""
    model_targets: list[ModelTarget] = []
    for target in rule.targets:
        name = target.model or asked
        if rule.prefix:
            name = name.replace("*", asked[len(rule.name) :])
        model_targets.append(target if name == target.model else ModelTarget(target.upstream, name))
    return tuple(model_targets)


# Whether a request may be sent again, to another upstream, although the first one may have processed it.
#
# Its tools show whether it may do more than answer: tools of the client and tools that only read do not.
_ACTING: Final = ("mcp_servers", "plugins", "conversation", "previous_response_id", "prompt")


def is_repeatable(call: CallRequest) -> bool:
    """Return whether a call may be sent a second time with no other effect than a second answer."""
    document = call.body.document
    if document is None or call.objects.named or any(document.get(name) is not None for name in _ACTING):
        return False
    if call.spec.background:  # the first one would continue unnoticed
        return False
    costs = tool_costs(call.family)
    return all(cost in SAFE for tool in call.body.tools for _, cost in kinds_of(tool, costs))
