"""The fields of a request's body that decide something in the gateway, and how each is read.

A field belongs here if a hold, a price, a model list, an account or the shape of the answer depends on it. It
has one spelling and one type. All other fields pass unread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.core.families.costs import MODEL, MODELS, OPTIONS, members_of_cost, names_of
from gateway.errors import InvalidRequest

Document = dict[str, object]
PathParams = Mapping[str, str]

# Models that an upstream in front of others may use instead.
MODEL_LISTS = ("models", *sorted(members_of_cost("all", MODELS)))
# Fields by which such an upstream sends a call to another server, with another credential, or changes it:
# their values replace fields that were read here.
ELSEWHERE = frozenset(
    {
        "api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "deployment_id",
        "model_list", "preset", "extra_body", "extra_headers", "extra_query", "litellm_params", "user_config",
        "router_settings_override", "additional_drop_params", "providerOptions", "provider_options",
    }
)  # fmt: skip
# Fields that ask for an answer later: xAI's, that of servers with webhooks, and that of OpenAI's responses.
BACKGROUND = "background"
LATER = ("deferred", "async", BACKGROUND)
# Other fields that are read, to estimate the size of the prompt and to find the ids of stored objects.
_READ = (
    "messages", "input", "prompt", "system", "instructions", "contents", "systemInstruction",
    "system_instruction", "tools", "tool_choice", "toolConfig", "tool_config", "plugins", "mcp_servers",
    "web_search_options", "search_parameters", "service_tier", "speed", "modalities", "conversation",
    "previous_response_id", "container", "cache_control", "cachedContent", "cached_content",
    "max_tool_calls",
)  # fmt: skip
OF_EVERY_FAMILY = (*MODEL_LISTS, *ELSEWHERE, *LATER, *_READ)
_LATER = frozenset(LATER)
_ELSEWHERE_OR_MODELS = frozenset((*MODEL_LISTS, *ELSEWHERE))
# Fields whose tools may call another model: an advisor, a fusion, a generator of images.
_TOOLS = frozenset(
    {
        "tools", "plugins", "tool_choice", "toolConfig", "tool_config", "tool_resources",
        "web_search_options", "search_parameters", "mcp_servers", "context_management", "advisor",
    }
)  # fmt: skip
# Ends of names that may have an id, in small letters.
ID_ENDS: Final = ("_id", "_ids", "-id", "-ids", "_uuid", "_uuids", "-uuid", "-uuids")
# Texts, and values in a form that the caller chooses. A name in them selects no model.
_NO_MODELS = frozenset(
    {
        "messages", "input", "prompt", "contents", "system", "instructions", "systemInstruction",
        "system_instruction", "content", "requests", "functions", "metadata", "litellm_metadata",
        "client_metadata", "labels", "logit_bias", "response_format", "text", "output_config",
        "output_format", "safetySettings", "safety_settings", "stream_options", "chat_template_kwargs",
        "documents", "guided_json", "json_schema",
        "structured_outputs", "attributes", "model", *MODEL_LISTS,
    }
)  # fmt: skip
_DEPTH_MAX = 16
# Ends of names of members that name models, in small letters.
_NAMING = tuple({name.casefold() for name in names_of("members", MODEL)})
# Data that callers write, and rows of an eval: what they call a model is none.
_ROWS = frozenset(
    {"metadata", "attributes", "customMetadata", "client_metadata", "item", "sample", "item_schema"}
)
# Fields with names that the caller chooses: arguments of functions, and tools of a server.
OWN_NAMES = frozenset(
    {
        "function", "functionDeclarations", "function_declarations", "input_schema", "input_examples",
        "properties", "$defs", "definitions", "output_schema", "configs", "headers", "env", "responseSchema",
        "response_schema", "responseJsonSchema", "response_json_schema", "_responseJsonSchema",
    }
)  # fmt: skip
_OWN_NAMES_OR_ROWS = OWN_NAMES | _ROWS
# What callers write freely, whatever the API.
FREE = frozenset(
    {
        "metadata", "parameters", "arguments", "args", "schema", "json_schema", "input_schema", "properties",
        "responseSchema", "response_schema", "responseJsonSchema", "parametersJsonSchema", "headers",
        "attributes", "customMetadata", "client_metadata", "input_examples",
    }
)  # fmt: skip
# Documented fields of a model that moderates, and produces no answer (OpenAI, Mistral).
_JUDGES = frozenset(
    {
        "moderation.model", "guardrails.moderation_llm_v1.model_name",
        "guardrails.moderation_llm_v2.model_name",
    }
)  # fmt: skip
# Fields whose texts name no model.
_TOLD = frozenset({"type", "name", "description"})


class ModelAttempt(NamedTuple):
    """A model that a vendor asks where the one before it gives way, with a maximum and a tier of its own.

    Each attempt reads the input, and may write before it gives way. `output_max` is None where it has that of
    the call. `chosen` is the value by which the vendor may choose this model.
    """

    model: str
    output_max: int | None = None
    tier: str = ""
    chosen: str = ""


# Reads one list of models of an API, by the value and the name of its field. Lists that have no reader of
# their own hold names of models alone.
ListReader = Callable[[object, str], Sequence[ModelAttempt]]
ListReaders = Mapping[str, ListReader]
NO_READERS: Final[ListReaders] = {}
_PRESET = "@preset/"
MODELS_MAX = 64
MODEL_CHARACTERS_MAX = 256
USER_CHARACTERS_MAX = 128


class ControlledNames:
    """Names of fields that the gateway reads, each accepted in exactly one spelling."""

    __slots__ = ("exact", "folded")

    def __init__(self, *names: str) -> None:
        self.exact = frozenset(names)
        self.folded = {name.casefold(): name for name in names}

    def check(self, document: Document, path: str = "") -> None:
        """Raise `InvalidRequest` for a known name in another case, or with NUL after it.

        Some upstreams would read such a field as the known one, but the gateway would not.
        """
        exact, folded = self.exact, self.folded
        for name in document:
            if name not in exact:
                known = folded.get(name.partition("\0")[0].casefold())
                if known is not None:
                    raise InvalidRequest(
                        f"The field {path}{name} must be written {path}{known}.", param=path + known
                    )

    def check_spelling(self, document: Document, path: str = "") -> None:
        """Run `check`, and refuse the other spelling of a known name: camelCase or snake_case.

        Parsers of proto3 JSON accept both, and the gateway reads one.
        """
        self.check(document, path)
        plain = {name.replace("_", "").casefold(): name for name in self.exact}
        for name in document:
            known = plain.get(name.replace("_", "").casefold())
            if known is not None and name not in self.exact:
                raise InvalidRequest(
                    f"The field {path}{name} must be written {path}{known}.", param=path + known
                )


STREAM_OPTIONS = ControlledNames("include_usage")
INNER_CALLS = ("generateContentRequest", "generate_content_request")
_COUNTED = ControlledNames("model", *INNER_CALLS, *OF_EVERY_FAMILY)

# Facts about a body that follow from the names at its top level alone.
#
# Most callers send the same names in each call, so the facts are cached, within bounds.
TOPS_REMEMBERED_MAX = 1_024
TOP_NAMES_MAX, TOP_CHARACTERS_MAX = (32, 512)  # of cached names
MODEL_NAMES_MAX = 4_096
# A body without these fields asks for no tool and no search. `KEPT` name contents that may include tools.
KEPT = ("cachedContent", "cached_content")
SEARCH_OPTIONS, SEARCH_PARAMETERS = ("web_search_options", "search_parameters")
# Words in the names of models that search by themselves, and whether their answers say how often.
SEARCHING_MODELS: Final = {
    "-search-preview": False, "-search-api": False, "search": True, "sonar": True, ":online": True,
}  # fmt: skip
# A token of an answer that reached its limit: the call that sends it goes on with the text of that one.
CONTINUES = ("continuationToken", "continuation_token")
_ASKING = frozenset({"tools", "prompt", "plugins", SEARCH_PARAMETERS, SEARCH_OPTIONS, *KEPT, *OPTIONS})


class TopNames:
    """Facts about a request body that follow from the names at its top level.

    `elsewhere`: a name lists models, or sends the call to another server. `times_out`: a name states a
    timeout. `asks`: a name may ask for tools or a search. `later`: a name may ask for an answer later.
    `continues`: a name may continue another answer.
    `others`: names whose values may contain names of models.
    """

    __slots__ = ("asks", "continues", "elsewhere", "later", "others", "times_out")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.asks = not _ASKING.isdisjoint(names)
        self.elsewhere = not _ELSEWHERE_OR_MODELS.isdisjoint(names)
        self.later = not _LATER.isdisjoint(names)
        self.continues = not frozenset(CONTINUES).isdisjoint(names)
        self.times_out = "timeout" in " ".join(names).lower()
        self.others = tuple([name for name in names if name not in _NO_MODELS])


def top_names(document: Document) -> TopNames:
    """Return facts about the field names at the top of a body, from the cache if they are in it."""
    names = tuple(document)
    found = _tops.get(names)
    if found is None:
        found = TopNames(names)
        if len(names) <= TOP_NAMES_MAX and sum(map(len, names)) <= TOP_CHARACTERS_MAX:
            if len(_tops) >= TOPS_REMEMBERED_MAX:
                _tops.clear()
            _tops[names] = found
    return found


_tops: Final[dict[tuple[str, ...], TopNames]] = {}
_models: Final[dict[str, None]] = {}  # cache of valid names of models


def maximum(document: Document, name: str, most: int, path: str = "") -> int | None:
    """Return the maximum of tokens in the field `name`, or None if it is absent or null.

    0 counts as 1, because some servers take 0 for no limit. `InvalidRequest` if it is no whole number up
    to `most`.
    """
    stated = _integer(document, name, 0, most, path)
    return None if stated is None else max(stated, 1)


def choices(document: Document, name: str, most: int, path: str = "") -> int:
    """Return how many answers a call asks for in the field `name`; 1 if it is absent.

    `InvalidRequest` if it is no whole number up to `most`.
    """
    stated = _integer(document, name, 1, most, path)
    return 1 if stated is None else stated


def flag(document: Document, name: str, path: str = "") -> bool:
    """Return a boolean field: False if it is absent or null; `InvalidRequest` for another type."""
    value = document.get(name)
    if value is not None and type(value) is not bool:
        raise _mistyped(path + name, "true or false")
    return value is True


def inner(document: Document, name: str, names: ControlledNames) -> Document | None:
    """Return the object in the field `name`, or None if it is absent or null.

    Raise `InvalidRequest` if it is no object, or has one of the field names in `names` in another
    spelling.
    """
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _mistyped(name, "an object")
    names.check(value, f"{name}.")
    return value


def object_at(*names: str) -> Callable[[Document], Document]:
    """Return a function that finds the first object under one of `names` in a document.

    If there is none, it creates an empty object under the last name.
    """

    def find(document: Document) -> Document:
        for name in names:
            value = document.get(name)
            if isinstance(value, dict):
                return value
        made: Document = {}
        document[names[-1]] = made
        return made

    return find


def elements(document: Document, name: str, path: str = "") -> list[Document]:
    """Return the objects of a list, empty if the field is absent or null.

    Raise `InvalidRequest` for any other shape, because some upstreams accept it as a list.
    """
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _mistyped(path + name, "a list of objects")
    return value


def is_untyped_function(tool: Document) -> bool:
    """Return whether a tool without a type is a function of the caller's."""
    return tool.get("type") is None and "input_schema" in tool


def id_in(value: object, param: str) -> object:
    """Return a value that names a stored object, if it is a text; `InvalidRequest` for a list or an object.

    A number or null passes, and names no object.
    """
    if isinstance(value, list | dict):
        raise _mistyped(param, "text")
    return value


def ids_in(value: object, param: str) -> list[object]:
    """Return the texts in a field that names stored objects: one text, or a list of texts.

    `InvalidRequest` for an object, or a list within a list.
    """
    if isinstance(value, dict):
        raise _mistyped(param, "a list of texts")
    return [id_in(item, param) for item in (value if isinstance(value, list) else (value,))]


def model_name(value: object, param: str = "model") -> str:
    """Return a valid name of a model, as lists of models and prices have it.

    Raise `InvalidRequest` for blanks around it, for a comma (LiteLLM would read several models) and for a
    preset (OpenRouter would choose another model).
    """
    if isinstance(value, str) and value in _models:
        return value
    if value is None or value == "":
        raise InvalidRequest(f"The field {param} is missing.", param=param)
    if not isinstance(value, str):
        raise _mistyped(param, "text")
    if len(value) > MODEL_CHARACTERS_MAX or not value.isprintable() or value.strip() != value:
        raise InvalidRequest(
            f"The field {param} is not the name of a model: printable, without blanks around it.", param=param
        )
    if "," in value or _PRESET in value.casefold():
        raise InvalidRequest(
            f"The field {param} names more than a model: it has no comma and no {_PRESET}.", param=param
        )
    if len(_models) >= MODEL_NAMES_MAX:
        _models.clear()
    _models[value] = None
    return value


def is_model_name(value: str) -> bool:
    """Return whether `model_name` accepts the value."""
    try:
        return bool(model_name(value))
    except InvalidRequest:
        return False


def model_in_path(document: Document, named: str | None) -> str:
    """Return the model of a path; raise `InvalidRequest` if the body names another one."""
    model = model_name(named)
    for place in (document, *elements(document, "requests")):
        stated = place.get("model")
        if stated is not None and stated not in (model, f"models/{model}"):
            raise InvalidRequest(f"The field model must be that of the path: models/{model}.", param="model")
    return model


def models_counted(
    document: Document, named: str | None, readers: ListReaders = NO_READERS
) -> tuple[str, tuple[str, ...]]:
    """Return the model of a call that is free (it counts tokens, for example), and other models in its body.

    The first is empty if the path names the model (`named`) or the body none. A body for Gemini may
    contain a whole call. `readers` are those of its API.
    """
    _COUNTED.check(document)
    parts = [document, *[one for name in INNER_CALLS if isinstance(one := document.get(name), dict)]]
    stated = document.get("model")
    model = model_name(stated) if not named and stated is not None else ""
    for one in parts if named else ():
        model = model_in_path(one, named)
    rest = {name: value for name, value in document.items() if name not in INNER_CALLS}
    return model, tuple(
        [name for part in (rest, *parts[1:]) for name in models_beside(part, readers=readers)]
    )


def models_stored(document: Document, readers: ListReaders, prefix: str) -> tuple[str, ...]:
    """Return all models that the body of a stored object names, such as an agent, an eval or a store.

    Its API may have `prefix` in front of a model's name.
    """
    models = [*models_beside(document, readers=readers)]
    if document.get("model") is not None:
        models.append(model_name(_name_in_object(document["model"])))
    return tuple(dict.fromkeys([model.removeprefix(prefix) for model in models]))


def models_beside(
    document: Document, names: TopNames | None = None, readers: ListReaders = NO_READERS
) -> tuple[str, ...]:
    """Return all models that a body names besides the requested one; each may answer the call.

    `readers` read the lists in which its API has more than names.
    """
    found: list[str] = []
    names = names or top_names(document)
    if names.elsewhere:
        _add_lists(document, found, readers)
    for name in names.others:
        value = document[name]
        if isinstance(value, dict | list):
            _add_nested(value, name, found, _DEPTH_MAX, strict=name in _TOOLS)
        elif isinstance(value, str) and name.casefold().endswith(_NAMING):
            _add_models(value, name, found)
    return tuple(found)


def refuse_inside(value: object, names: Collection[str], path: str, depth: int = _DEPTH_MAX) -> None:
    """Raise `InvalidRequest` if a field in `names` occurs in a value, at any depth.

    Case and underscores are ignored. A value nested deeper than `depth` is refused too: no API has such
    messages.
    """
    if depth == 0:
        raise InvalidRequest(f"{path} is nested more than {_DEPTH_MAX} deep.", param=path)
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                refuse_inside(item, names, path, depth - 1)
    elif isinstance(value, dict):
        for name, inside in value.items():
            if name.replace("_", "").casefold() in names:
                param = path + name
                raise InvalidRequest(f"{param} is not accepted here: leave it out.", param=param)
            if name not in OWN_NAMES and isinstance(inside, list | dict):
                refuse_inside(inside, names, f"{path}{name}.", depth - 1)


def models_of(tool: Document, path: str) -> list[str]:
    """Return the models that a tool or plugin names. `path` is its place in the body, for errors."""
    names: list[str] = []
    _add_nested(tool, path, names, _DEPTH_MAX, strict=True)
    return names


def _add_lists(document: Document, names: list[str], readers: ListReaders) -> None:
    """Add to `names` the models in lists at the top of a body, such as fallbacks.

    Raise `InvalidRequest` for a field that would send the call to another server.
    """
    for name in document.keys() & ELSEWHERE:
        raise InvalidRequest(f"The field {name} is not accepted: leave it out.", param=name)
    for name in MODEL_LISTS:
        if name in readers:
            names += [attempt.model for attempt in readers[name](document.get(name), name)]
        else:
            _add_models(document.get(name), name, names)


def _add_nested(value: object, path: str, found: list[str], depth: int, *, strict: bool) -> None:
    """Add to `found` the models in fields such as `model`, `models` or `modelName`, at any depth.

    With `strict` (tools and plugins) another value in such a field raises `InvalidRequest`; else it is
    ignored. A value nested deeper than `depth` is refused: it could name a model.
    """
    if depth == 0:
        raise InvalidRequest(f"{path} is nested more than {_DEPTH_MAX} deep.", param=path)
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                _add_nested(item, path, found, depth - 1, strict=strict)
    elif isinstance(value, dict):
        functions = value.get("type") == "function"
        for name, inside in value.items():
            if name in (OWN_NAMES if strict else _OWN_NAMES_OR_ROWS):
                continue
            if depth > 1 and name in _TOLD and isinstance(inside, str):
                continue
            folded = name.casefold()
            names = folded.endswith(_NAMING) or folded in MODEL_LISTS
            if names and f"{path}.{name}" in _JUDGES:
                _add_models(inside, f"{path}.{name}", [])
            elif names and (
                strict or _is_name(inside) or (isinstance(inside, list) and any(map(_is_name, inside)))
            ):
                _add_models(inside, f"{path}.{name}", found)
            elif isinstance(inside, list | dict) and not (functions and name == "parameters"):
                _add_nested(inside, f"{path}.{name}", found, depth - 1, strict=strict)


def _name_in_object(value: object) -> object:
    """Return the name in an object that is a model with settings of its own."""
    return value["id"] if isinstance(value, dict) and isinstance(value.get("id"), str) else value


def _is_name(value: object) -> bool:
    value = _name_in_object(value)
    return isinstance(value, str) and bool(value)


def _add_models(value: object, param: str, names: list[str]) -> None:
    """Add the models that a field names, at most `MODELS_MAX`."""
    if value is not None:
        names += [model_name(one, param) for one in _named_models(value, param)]
        if len(names) > MODELS_MAX:
            raise InvalidRequest(f"{param} must name at most {MODELS_MAX} models.", param=param)


def stated_user(value: object) -> str:
    """Return the user that a body names; empty if it is no text, or one that cannot be stored."""
    if isinstance(value, str) and 0 < len(value) <= USER_CHARACTERS_MAX and value.isprintable():
        return value
    return ""


def _named_models(value: object, param: str) -> Iterator[object]:
    """Yield the models in a name, a list of names, `{"model": name}` or `{name: [names]}`.

    Raise `InvalidRequest` for other values. An entry may have no other field: an upstream would use it
    instead of the call's own field.
    """
    value = _name_in_object(value)
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _mistyped(param, "a list of names of models")
    for item in items[: MODELS_MAX + 1]:
        if isinstance(item, str):
            yield item
        elif not isinstance(item, dict):
            raise _mistyped(param, "a list of names of models")
        elif "model" in item:
            if len(item) > 1:
                raise InvalidRequest(f'{param}: beside "model" nothing may stand in an entry.', param=param)
            yield item["model"]
        else:
            for name, others in item.items():
                yield name
                if not isinstance(others, list):
                    raise _mistyped(param, "a list of names of models")
                yield from others[: MODELS_MAX + 1]


def _integer(document: Document, name: str, least: int, most: int, path: str) -> int | None:
    """Return the number in the field `name`, or None if it is absent or null.

    Raise `InvalidRequest` unless it is a whole number from `least` to `most`.
    """
    value = document.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise _mistyped(path + name, "a whole number")
    if not least <= value <= most:
        raise _mistyped(path + name, f"between {least} and {most}")
    return value


def _mistyped(param: str, right: str) -> InvalidRequest:
    return InvalidRequest(f"{param} must be {right}.", param=param)


# The tokens of a prompt by the model's own tokenizer, for answers that do not report them.

PROMPT_BYTES_MAX = 1 << 20  # longer ones are estimated: a tokenizer would delay other calls
MESSAGE_TOKENS = 4  # around each message: its role, its beginning and its end
ANSWER_TOKENS = 3  # the beginning of an answer
_SPOKEN = frozenset(
    {"content", "text", "input", "prompt", "instructions", "refusal", "name", "arguments", "description"}
)

# Returns the tokens of a text; returns the tokenizer of a model, None if unknown.
CountTokens = Callable[[str], int]
Tokenizer = Callable[[str], CountTokens | None]


def prompt_tokens(body: bytes, tokens_of: CountTokens) -> int | None:
    """Return the tokens of the prompt in an OpenAI request, or None if the body is too long or unreadable."""
    if len(body) > PROMPT_BYTES_MAX:
        return None
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    texts: list[str] = []
    tokens = _gather(asked, texts, spoken=False)
    messages = asked.get("messages")
    if isinstance(messages, list):
        tokens += MESSAGE_TOKENS * len(messages) + ANSWER_TOKENS
    return tokens + sum(map(tokens_of, texts))


def _gather(value: object, texts: list[str], *, spoken: bool) -> int:
    """Add to `texts` all that the model reads; return the number of tokens that are given as integers.

    `spoken` says that `value` is from a field with text for the model.
    """
    if isinstance(value, str):
        if spoken:
            texts.append(value)
    elif isinstance(value, list):
        return sum(_gather(item, texts, spoken=spoken) for item in value)
    elif isinstance(value, dict):
        return sum(_gather(item, texts, spoken=name in _SPOKEN) for name, item in value.items())
    elif spoken and isinstance(value, int) and not isinstance(value, bool):
        return 1
    return 0
