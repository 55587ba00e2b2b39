"""Models that answer a call of Anthropic's where the requested one declines.

The field is `BetaFallbacksParam` of anthropic 2.10.0. Members of an entry replace those of the call. Anthropic
rejects any other member.
"""

from __future__ import annotations

from typing import Final

from gateway.core.families.controlled import (
    MODELS_MAX,
    ControlledNames,
    ModelAttempt,
    elements,
    maximum,
    model_name,
)
from gateway.core.model import INTEGER_MAX
from gateway.errors import InvalidRequest

FALLBACKS: Final = "fallbacks"
FAST: Final = "fast"  # a speed with its own prices, like a service tier
_DEFAULT: Final = "default"
# The models that Anthropic recommends by the category of a refusal, for all its models (its page on refusals
# and fallback, and Claude Code's on models, 2026-11-30). The request cannot tell which.
_RECOMMENDED: Final = ("claude-opus-5", "claude-opus-4-8")
_ENTRY: Final = frozenset({"model", "max_tokens", "thinking", "output_config", "speed"})


def read_fallbacks(value: object, param: str, most: int = INTEGER_MAX) -> tuple[ModelAttempt, ...]:
    """Return the models of `fallbacks`: of each entry, or those that `"default"` may choose.

    Raise `InvalidRequest` for a field that no entry has, and for a maximum above `most`.
    """
    if value == _DEFAULT:
        return tuple([ModelAttempt(model, chosen=f'{param} "{_DEFAULT}"') for model in _RECOMMENDED])
    names, attempts = ControlledNames(*_ENTRY), list[ModelAttempt]()
    entries = [value] if isinstance(value, str) else value
    if isinstance(entries, list):
        entries = [{"model": entry} if isinstance(entry, str) else entry for entry in entries]
    for entry in elements({param: entries}, param):
        names.check(entry, f"{param}.")
        for name in entry.keys() - _ENTRY:
            right = ", ".join(sorted(_ENTRY))
            raise InvalidRequest(
                f"{param}.{name} is not accepted: an entry may have {right} alone.", param=f"{param}.{name}"
            )
        speed = entry.get("speed")
        if speed not in (None, "standard", FAST):
            raise InvalidRequest(f'{param}.speed must be "standard" or "{FAST}".', param=f"{param}.speed")
        model = model_name(entry.get("model"), f"{param}.model")
        if model.lower() == _DEFAULT:
            raise InvalidRequest(f'{param} must be the text "{_DEFAULT}", or name models.', param=param)
        attempts.append(
            ModelAttempt(
                model,
                maximum(entry, "max_tokens", most, f"{param}."),
                FAST if speed == FAST else "",
            )
        )
    if len(attempts) > MODELS_MAX:
        raise InvalidRequest(f"{param} must name at most {MODELS_MAX} models.", param=param)
    return tuple(attempts)
