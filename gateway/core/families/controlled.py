"""The fields of a request's body that decide something here, and how one is taken.

A field belongs here when a hold, a price, a model list, an account or the shape of the answer
depends on it. It has one spelling and one type; whatever is not named here passes unread.
"""

from __future__ import annotations

from gateway.errors import InvalidRequest

Document = dict[str, object]

# Models that an upstream in front of others may use instead (OpenRouter, LiteLLM).
MODEL_LISTS = (
    "models",
    "fallbacks",
    "fallback",
    "fallback_model",
    "fallback_models",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "context_window_fallback_dict",
    "default_fallbacks",
)
# By which such an upstream sends a call elsewhere, with another credential, or makes another call of it.
ELSEWHERE = frozenset(
    {
        "api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "deployment_id",
        "model_list", "preset", "extra_body", "extra_headers", "extra_query",
    }
)  # fmt: skip
MODELS_MAX = 64
MODEL_CHARACTERS_MAX = 256
USER_CHARACTERS_MAX = 128


class Names:
    """The controlled names of one kind of object."""

    __slots__ = ("exact", "folded")

    def __init__(self, *names: str) -> None:
        self.exact = frozenset(names)
        self.folded = {name.casefold(): name for name in names}

    def check(self, document: Document, path: str = "") -> None:
        """Refuse a controlled name in another case: some parsers match names without it."""
        exact, folded = self.exact, self.folded
        for name in document:
            if name not in exact:
                known = folded.get(name.casefold())
                if known is not None:
                    raise InvalidRequest(
                        f"The field {path}{name} must be written {path}{known}.", param=path + known
                    )


STREAM_OPTIONS = Names("include_usage")


def integer(document: Document, name: str, path: str = "") -> int | None:
    """A whole number, None where it is absent or null."""
    value = document.get(name)
    if value is not None and type(value) is not int:
        raise _mistyped(path + name, "a whole number")
    return value


def maximum(document: Document, name: str, most: int, path: str = "") -> int | None:
    """A stated maximum of tokens, None where none is."""
    stated = integer(document, name, path)
    if stated is not None and not 0 <= stated <= most:
        raise InvalidRequest(f"{path}{name} must be between 0 and {most}.", param=path + name)
    return stated


def choices(document: Document, name: str, most: int, path: str = "") -> int:
    """How many answers are asked for."""
    stated = integer(document, name, path)
    if stated is not None and not 1 <= stated <= most:
        raise InvalidRequest(f"{path}{name} must be between 1 and {most}.", param=path + name)
    return 1 if stated is None else stated


def flag(document: Document, name: str, path: str = "") -> bool:
    """True or false; absent and null are false."""
    value = document.get(name)
    if value is not None and type(value) is not bool:
        raise _mistyped(path + name, "true or false")
    return value is True


def inner(document: Document, name: str, names: Names) -> Document | None:
    """An object inside, its own controlled names checked; None where it is absent or null."""
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _mistyped(name, "an object")
    names.check(value, f"{name}.")
    return value


def model_name(value: object, param: str = "model") -> str:
    """The name of a model as it is looked up in lists and prices: no name has blanks around it."""
    if value is None or value == "":
        raise InvalidRequest(f"The field {param} is missing.", param=param)
    if not isinstance(value, str):
        raise _mistyped(param, "text")
    if len(value) > MODEL_CHARACTERS_MAX or not value.isprintable() or value.strip() != value:
        raise InvalidRequest(
            f"The field {param} is not the name of a model: printable, without blanks around it.", param=param
        )
    return value


def model_in_path(document: Document, named: str | None) -> str:
    """The model of a path; a body that names one too must name the same."""
    model = model_name(named)
    requests = document.get("requests")
    for place in (document, *(requests if isinstance(requests, list) else ())):
        stated = place.get("model") if isinstance(place, dict) else None
        if stated is not None and stated not in (model, f"models/{model}"):
            raise InvalidRequest(f"The field model must be that of the path: models/{model}.", param="model")
    return model


def models_beside(document: Document) -> tuple[str, ...]:
    """Every model a list in the body names beside the one that is asked for; nothing else may answer."""
    for name in document.keys() & ELSEWHERE:
        raise InvalidRequest(f"The field {name} is not accepted: leave it out.", param=name)
    found: list[str] = []
    for name in MODEL_LISTS:
        if name in document:
            _gather(document[name], name, found)
            if len(found) > MODELS_MAX:
                raise InvalidRequest(f"{name} must name at most {MODELS_MAX} models.", param=name)
    return tuple(found)


def stated_user(value: object) -> str:
    """A user a body names, as it may be kept; empty where it is none."""
    if isinstance(value, str) and 0 < len(value) <= USER_CHARACTERS_MAX and value.isprintable():
        return value
    return ""


def _gather(value: object, param: str, found: list[str]) -> None:
    """Read a name, a list of names, `{"model": name}`, or `{name: [names]}`; anything else is refused."""
    if value is None:
        return
    if isinstance(value, str):
        found.append(model_name(value, param))
        return
    if not isinstance(value, list):
        raise _mistyped(param, "a list of names of models")
    for item in value[: MODELS_MAX + 1]:
        if isinstance(item, str):
            found.append(model_name(item, param))
        elif isinstance(item, dict):
            _gather_object(item, param, found)
        else:
            raise _mistyped(param, "a list of names of models")


def _gather_object(item: Document, param: str, found: list[str]) -> None:
    if "model" in item:
        found.append(model_name(item["model"], param))
        return
    for name, others in item.items():
        found.append(model_name(name, param))
        if not isinstance(others, list):
            raise _mistyped(param, "a list of names of models")
        found.extend(model_name(other, param) for other in others[: MODELS_MAX + 1])


def _mistyped(param: str, right: str) -> InvalidRequest:
    return InvalidRequest(f"{param} must be {right}.", param=param)
