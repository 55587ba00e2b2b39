"""`tollkeeper import litellm`: a configuration of LiteLLM as files of ours, and all that is left out.

Each part of the source is taken out of it as it is translated, so the rest is the list of omissions. Pure but
for the command itself. Credentials are referred to, or written to files of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.configuration import documents, written
from gateway.cli.admin.output import AsJson, print_json, say
from gateway.core.text import read_json, visible

CONFIG, OBJECTS, KEYS = "tollkeeper.yaml", "objects.yaml", "keys"
BYTES_MAX = 4 * 2**20
PLAN, EVERYBODY = "Tokens without a limit", "Everybody"
ENVIRON = "os.environ/"


@dataclass(frozen=True, slots=True)
class Provider:
    """How a provider of theirs is reached; `path` is a template of an upstream."""

    family: str
    base_url: str
    variable: str
    path: str = ""
    # How it signs in without a key; its region and project: our name, theirs, and the variable.
    auth: str = ""
    places: tuple[tuple[str, str, str], ...] = ()


_VERTEX_HOST = "https://${region}-aiplatform.googleapis.com"
_VERTEX_PLACES = (
    ("region", "vertex_location", "VERTEX_REGION"),
    ("project", "vertex_project", "VERTEX_PROJECT"),
)


def _vertex(family: str, publisher: str) -> Provider:
    path = (
        f"/v1/projects/{{project}}/locations/{{region}}/publishers/{publisher}/models/{{model}}:{{operation}}"
    )
    return Provider(family, _VERTEX_HOST, "", path, "google", _VERTEX_PLACES)


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider("openai", "https://api.openai.com", "OPENAI_API_KEY"),
    "text-completion-openai": Provider("openai", "https://api.openai.com", "OPENAI_API_KEY"),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    "gemini": Provider("gemini", "https://generativelanguage.googleapis.com", "GEMINI_API_KEY"),
    "azure": Provider("openai", "", "AZURE_API_KEY", "/openai/deployments/{model}/{operation}"),
    "groq": Provider("openai", "https://api.groq.com/openai", "GROQ_API_KEY"),
    "mistral": Provider("openai", "https://api.mistral.ai", "MISTRAL_API_KEY"),
    "deepseek": Provider("openai", "https://api.deepseek.com", "DEEPSEEK_API_KEY"),
    "together_ai": Provider("openai", "https://api.together.xyz", "TOGETHERAI_API_KEY"),
    "fireworks_ai": Provider("openai", "https://api.fireworks.ai/inference", "FIREWORKS_AI_API_KEY"),
    "openrouter": Provider("openai", "https://openrouter.ai/api", "OPENROUTER_API_KEY"),
    "xai": Provider("openai", "https://api.x.ai", "XAI_API_KEY"),
    "cerebras": Provider("openai", "https://api.cerebras.ai", "CEREBRAS_API_KEY"),
    "perplexity": Provider("openai", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY", "/{operation}"),
    "bedrock": Provider(
        "bedrock",
        "https://bedrock-runtime.${region}.amazonaws.com",
        "",
        "",
        "aws",
        (("region", "aws_region_name", "AWS_REGION"),),
    ),
    "vertex_ai": _vertex("gemini", "google"),
    "vertex_ai-anthropic_models": _vertex("anthropic", "anthropic"),
    "cohere": Provider("cohere", "https://api.cohere.com", "COHERE_API_KEY"),
    "cohere_chat": Provider("cohere", "https://api.cohere.com", "COHERE_API_KEY"),
    "voyage": Provider("openai", "https://api.voyageai.com", "VOYAGE_API_KEY"),
    "jina_ai": Provider("openai", "https://api.jina.ai", "JINA_AI_API_KEY"),
    "hosted_vllm": Provider("openai", "", ""),
    "ollama": Provider("openai", "http://localhost:11434", ""),
    "ollama_chat": Provider("openai", "http://localhost:11434", ""),
}
# Names without a provider in front.
_PLAIN = {
    "claude": "anthropic", "gemini": "gemini", "gpt-": "openai", "o1": "openai", "o3": "openai",
    "o4": "openai", "chatgpt-": "openai", "text-embedding-": "openai", "anthropic.": "bedrock",
}  # fmt: skip
_INTERVALS = {
    "1h": "hour",
    "24h": "day",
    "1d": "day",
    "7d": "week",
    "1w": "week",
    "30d": "month",
    "1mo": "month",
}
# Why parts are left, by how their place begins or ends; what no row is about has no counterpart.
_WHY = (
    (r"guardrails.*|.*\.guardrails", "Tollkeeper filters no content"),
    (r"model_list\[\d+\]\.model_name", "its model is not taken over"),
    (r".*\.(?:aws|vertex)_.*", "credentials are the machine's, or in credentials_file of the upstream"),
    (r".*\.(?:cache|cache_params.*|caching.*)", "answers are not cached"),
    (r".*callbacks?(?:\[.*)?|.*callback_settings.*|.*langfuse.*", "use webhooks, the usage feed or traces"),
    (r"general_settings\.master_key", "a secret; make an admin token: tollkeeper admin-token create"),
    (r"general_settings\.(?:database_url|.*database.*)", "Tollkeeper has a database of its own"),
    (r".*\.(?:rpm|tpm|max_parallel_requests)", "limits are of callers, not of upstreams"),
    (r".*\.(?:(?:num|max)_retries|retry_policy.*|allowed_fails.*|cooldown_time)", "the client's SDK retries"),
    (r".*routing_strategy.*|.*\.weight", "targets are asked in their order"),
    (r".*\.(?:timeout|stream_timeout|request_timeout)", "set first_byte_s and idle_s of the upstream"),
    (r".*model_info.*", "prices and ceilings of models are Tollkeeper's own: tollkeeper price list"),
    (r".*_cost_per_.*", "give the model a price: tollkeeper price create"),
    (r"model_list.*\.(?:temperature|max_tokens|top_p|.*_params)", "bodies pass as callers send them"),
    (r".*drop_params|.*modify_params", "bodies pass as callers send them"),
    (r"environment_variables.*", "set them in the environment of the gateway"),
    (r"mcp_servers.*|.*mcp.*", "make each server an upstream with family: mcp"),
    (r"general_settings\.(?:enable_jwt_auth|litellm_jwtauth.*)", "name the issuer of tokens under issuers"),
    (r".*provider_budget_config.*", "a budget is of callers or models, not of a provider"),
)  # fmt: skip


@dataclass(slots=True)
class Translated:
    """The result: a configuration file, objects to apply, secrets by file, and omissions."""

    config: Json = field(default_factory=dict)
    objects: Json = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translate(
    source: Json, organization: str, directory: Path, teams: Any = None, keys: Any = None
) -> Translated:
    """Translate a configuration, and lists of teams and keys as LiteLLM's API answers them."""
    work = _Translation(deepcopy(source), organization, directory)
    work.models()
    work.budgets()
    work.teams(deepcopy(teams), deepcopy(keys))
    return work.done()


class _Translation:
    def __init__(self, source: Json, organization: str, directory: Path) -> None:
        self._source, self._owner, self._directory = source, organization, directory
        self._made = Translated()
        self._upstreams: dict[str, Json] = {}
        self._targets: dict[str, list[Json]] = {}
        self._budgets: list[Json] = []

    def models(self) -> None:
        for number, each in enumerate(_rows(self._source.get("model_list"))):
            place = f"model_list[{number}]"
            name, params = str(each.get("model_name") or ""), each.get("litellm_params")
            if name == "*":
                self._leave(f"{place}.model_name", "a name for all: such calls go by their path")
                continue
            if not name or not isinstance(params, dict) or (target := self._target(place, params)) is None:
                continue
            self._budget(params, f"Model {name}", place, model=name)
            del each["model_name"]
            known = self._targets.setdefault(name, [])
            if target not in known:
                known.append(target)
            if len(known) > 1:
                self._note(
                    "Of a name with several targets, the first one is asked, and the next one where it fails."
                )
        for place in ("litellm_settings", "router_settings"):
            self._fallbacks(place)
        self._aliases()

    def _target(self, place: str, params: Json) -> Json | None:
        """The upstream and model of a deployment; None where nothing here reaches it."""
        asked = params.get("model")
        provider, model = _called(str(asked or ""), str(params.get("custom_llm_provider") or ""))
        known = PROVIDERS.get(provider)
        if known is None or not model:
            self._leave(f"{place}.litellm_params.model", f"{asked}: its provider's API is not known here")
            params.pop("model", None)
            return None
        base = _text(params.get("api_base"))
        if not base and not known.base_url:
            self._leave(f"{place}.litellm_params.model", f"{asked}: needs an api_base")
            params.pop("model", None)
            return None
        for name in ("model", "api_base", "custom_llm_provider"):
            params.pop(name, None)
        upstream: Json = {"base_url": base.rstrip("/") or known.base_url, "family": known.family}
        _sign_in(upstream, known, params)
        if known.path:
            upstream["path"] = known.path
        elif base and known.family == "openai" and not provider.startswith("ollama"):
            if upstream["base_url"].endswith("/v1"):
                upstream["base_url"] = upstream["base_url"].removesuffix("/v1")
            else:
                upstream["path"] = "/{operation}"
        if provider == "azure":
            version = _text(params.pop("api_version", None)) or "${AZURE_API_VERSION:-2024-10-21}"
            upstream |= {"query": {"api-version": version}, "headers": {"api-key": "{key}"}}
        headers = {
            str(name).lower(): _text(each)
            for name, each in dict(params.pop("extra_headers", None) or {}).items()
        }
        if organization := _text(params.pop("organization", None)):
            headers["openai-organization"] = organization
        if headers:
            upstream["headers"] = upstream.get("headers", {}) | headers
        if not known.auth and (key := self._key(provider, known, params.pop("api_key", None))):
            upstream["keys"] = [key]
        return {"upstream": self._upstream(provider, upstream), "model": model}

    def _upstream(self, provider: str, wanted: Json) -> str:
        """The name of this upstream, which may be there already; one with another key is another account."""
        for number in range(1, len(self._upstreams) + 2):
            name = provider.replace("_", "-") + (f"-{number}" if number > 1 else "")
            if self._upstreams.setdefault(name, wanted) == wanted:
                return name
        raise AssertionError(provider)

    def _key(self, provider: str, known: Provider, said: object) -> Json:
        """Where a key is: its variable, or a file where the source has it in plain text; nothing for none."""
        text = str(said or "")
        if text.startswith(ENVIRON):
            return {"env": text.removeprefix(ENVIRON)}
        if not text:
            return {"env": known.variable} if known.variable else {}
        secrets = self._made.secrets
        file = next((file for file, kept in secrets.items() if kept == text), "")
        file = file or f"{provider.replace('_', '-')}-{len(secrets) + 1}"
        secrets[file] = text
        return {"file": str(self._directory / KEYS / file)}

    def _fallbacks(self, place: str) -> None:
        """Targets of other names behind a name's own."""
        settings = self._source.get(place)
        for each in _rows(settings.pop("fallbacks", None)) if isinstance(settings, dict) else ():
            for name, others in each.items():
                found = [target for other in _list(others) for target in self._targets.get(str(other), ())]
                if name not in self._targets or not found:
                    self._leave(
                        f"{place}.fallbacks.{name}",
                        "no model of this name, or none behind it, was taken over",
                    )
                    continue
                known = self._targets[name]
                known += [target for target in found if target not in known]

    def _aliases(self) -> None:
        settings = self._source.get("router_settings")
        aliases = settings.pop("model_group_alias", None) if isinstance(settings, dict) else None
        for alias, said in (aliases or {}).items():
            name = str(said.get("model") if isinstance(said, dict) else said)
            if name in self._targets:
                self._targets[str(alias)] = list(self._targets[name])
            else:
                self._leave(f"router_settings.model_group_alias.{alias}", f"no model {name} was taken over")

    def budgets(self) -> None:
        settings = self._source.get("litellm_settings")
        if not isinstance(settings, dict):
            return
        self._budget(settings, "All calls", "litellm_settings")
        users = settings.get("default_internal_user_params")
        if isinstance(users, dict):
            self._budget(users, "Each user", "litellm_settings.default_internal_user_params", each="user")

    def _budget(self, source: Json, name: str, place: str, **of: object) -> None:
        """The budget that `max_budget` and `budget_duration` say, if they do."""
        said, duration = source.get("max_budget"), source.get("budget_duration")
        if said is None:
            return
        interval = _INTERVALS.get(str(duration), "") if duration is not None else "total"
        try:
            amount = Decimal(str(said))
        except InvalidOperation:
            amount = Decimal(0)
        if not interval or amount <= 0:
            self._leave(
                f"{place}.budget_duration" if amount > 0 else f"{place}.max_budget",
                "no interval or amount of a budget",
            )
            return
        source.pop("max_budget")
        source.pop("budget_duration", None)
        name = _free(name, self._budgets)
        self._budgets.append(
            {
                "name": name,
                "organization": self._owner,
                "unit": "money",
                "amount": f"{amount:f}",
                "interval": interval,
                **of,
            }
        )

    def teams(self, teams: Any, keys: Any) -> None:
        """Tenants of teams, and keys of theirs; without any, one tenant for everybody with one key."""
        settings = self._source.get("litellm_settings")
        known = _rows(teams.get("teams") if isinstance(teams, dict) else teams)
        by_id: dict[str, str] = {}
        tenants: list[Json] = []
        models: dict[str, list[str]] = {}
        for number, each in enumerate(known):
            team_id = str(each.get("team_id"))
            by_id[team_id] = name = self._tenant(each, tenants)
            models[name] = [str(model) for model in each.pop("models", None) or ()]
            self._budget(each, f"Team {name}", f"teams[{number}]", tenant=name)
            self._rest(each, f"teams[{number}]")
        for each in _rows(settings.get("default_team_settings") if isinstance(settings, dict) else None):
            team = str(each.pop("team_id", ""))
            if team and team not in by_id:
                by_id[team] = self._tenant({"team_id": team}, tenants)
        made_keys: list[Json] = []
        for number, each in enumerate(_rows(keys.get("keys") if isinstance(keys, dict) else keys)):
            team = by_id.get(str(each.pop("team_id", None) or ""), "")
            tenant = team or self._everybody(tenants)
            name = str(each.pop("key_alias", None) or each.pop("key_name", None) or f"key {number + 1}")
            own = [str(model) for model in each.pop("models", None) or ()] or models.get(tenant, [])
            row: Json = {"name": name, "tenant": {"organization": self._owner, "name": tenant}}
            row |= {"models": own} if own else {}
            row |= {"user": user} if (user := each.pop("user_id", None)) else {}
            row |= {"limits": limits} if (limits := _limits(each)) else {}
            made_keys.append(row)
            if each.get("max_budget") is not None:
                self._leave(
                    f"keys[{number}].max_budget",
                    f"{each.pop('max_budget')}: make a budget of the new key's id",
                )
            self._rest(each, f"keys[{number}]")
        if made_keys:
            self._note("Values of keys are known to LiteLLM as hashes: each key here is a new one.")
        if not tenants:
            self._everybody(tenants)
        for each in tenants if not made_keys else ():
            own = models.get(each["name"], [])
            made_keys.append(
                {"name": "first", "tenant": {"organization": self._owner, "name": each["name"]}}
                | ({"models": own} if own else {})
            )
        self._made.objects = {
            "organizations": [{"name": self._owner}],
            "token-plans": [{"name": PLAN}],
            "tenants": tenants,
            "api-keys": made_keys,
            **({"budgets": self._budgets} if self._budgets else {}),
        }

    def _tenant(self, team: Json, tenants: list[Json]) -> str:
        name = str(team.pop("team_alias", None) or team.get("team_id") or EVERYBODY)
        team.pop("team_id", None)
        name = _free(name, tenants)
        row: Json = {"name": name, "organization": self._owner, "plan": PLAN}
        tenants.append(row | ({"limits": limits} if (limits := _limits(team)) else {}))
        return name

    def _everybody(self, tenants: list[Json]) -> str:
        if EVERYBODY not in {each["name"] for each in tenants}:
            tenants.append({"name": EVERYBODY, "organization": self._owner, "plan": PLAN})
        return EVERYBODY

    def done(self) -> Translated:
        made = self._made
        self._rest(self._source, "")
        made.config = {"upstreams": self._upstreams, "models": [], "include_default_routes": True}
        for name, targets in self._targets.items():
            by = {"prefix": name[:-1]} if name.endswith("*") else {"name": name}
            made.config["models"].append({**by, "targets": targets})
            families = {self._upstreams[each["upstream"]]["family"] for each in targets}
            if len(families) > 1:
                self._note("Nothing is translated between APIs: targets of another API are passed over.")
            for family in sorted(families - {"openai"}):
                self._note(f"Callers of {name} use the API of {family}, not OpenAI's: nothing is translated.")
        return made

    def _leave(self, place: str, why: str) -> None:
        self._made.left.append((place, why))

    def _rest(self, rest: object, place: str) -> None:
        """Name all that is left of a part of the source."""
        for each in _leaves(rest, place):
            known = {left for left, _ in self._made.left}
            if each not in known:
                why = next(
                    (why for pattern, why in _WHY if re.fullmatch(pattern, each)), "it has no counterpart"
                )
                self._leave(each, why)

    def _note(self, text: str) -> None:
        if text not in self._made.notes:
            self._made.notes.append(text)


def _called(asked: str, named: str) -> tuple[str, str]:
    """The provider and the model that a deployment's `model` says; the first is empty where it says none."""
    provider, _, model = asked.partition("/")
    if named or provider not in PROVIDERS:
        provider = named or next((known for start, known in _PLAIN.items() if asked.startswith(start)), "")
        model = asked
    if provider == "bedrock":
        return provider, re.sub(r"^(?:(?:converse|invoke|[a-z]{2}-[a-z]+-\d)/)+", "", model)
    if provider == "vertex_ai":
        publishers = {"gemini": provider, "claude": "vertex_ai-anthropic_models"}
        provider = next((its for start, its in publishers.items() if model.startswith(start)), "")
    return provider, model


def _sign_in(upstream: Json, known: Provider, params: Json) -> None:
    """How an upstream signs in without a key, and where it is, taken out of a deployment's settings."""
    for ours, theirs, variable in known.places:
        upstream[ours] = _text(params.pop(theirs, None)) or f"${{{variable}}}"
        upstream["base_url"] = upstream["base_url"].replace(f"${{{ours}}}", upstream[ours])
    if known.auth:
        upstream["auth"] = known.auth


def _leaves(rest: object, place: str) -> Iterator[str]:
    if isinstance(rest, dict):
        for name, each in rest.items():
            yield from _leaves(each, f"{place}.{name}" if place else str(name))
    elif isinstance(rest, list) and any(isinstance(each, dict | list) for each in rest):
        for number, each in enumerate(rest):
            yield from _leaves(each, f"{place}[{number}]")
    elif rest not in (None, "", []):
        yield place


def _free(name: str, rows: list[Json]) -> str:
    """A name that none of these rows has: this one, or with a number behind it."""
    taken = {each["name"] for each in rows}
    numbered = (name if number == 1 else f"{name} {number}" for number in range(1, len(taken) + 2))
    return next(one for one in numbered if one not in taken)


def _limits(source: Json) -> Json:
    names = {
        "rpm_limit": "requests_per_minute",
        "tpm_limit": "tokens_per_minute",
        "max_parallel_requests": "concurrency",
    }
    found = {ours: source.pop(theirs) for theirs, ours in names.items() if source.get(theirs)}
    return {name: int(most) for name, most in found.items()}


def _text(said: object) -> str:
    """A text, or the variable that has it."""
    text = str(said or "")
    return f"${{{text.removeprefix(ENVIRON)}}}" if text.startswith(ENVIRON) else text.replace("$", "$$")


def _rows(said: Any) -> list[Json]:
    return [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []


def _list(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said]


# `tollkeeper import litellm`.

Source = Annotated[Path, typer.Argument(metavar="CONFIG", help="LiteLLM's config.yaml.", show_default=False)]


def import_section() -> typer.Typer:
    """The commands that translate others' configurations."""
    made = typer.Typer(no_args_is_help=True, help="Take over another gateway's configuration.")

    @made.callback()
    def about() -> None:
        """Take over another gateway's configuration."""

    made.command("litellm")(litellm)
    return made


def litellm(
    source: Source,
    *,
    to: Annotated[Path, typer.Option(help="A new directory for the files.")] = Path("from-litellm"),
    org: Annotated[str, typer.Option(help="The organization that teams belong to.")] = "Company",
    teams: Annotated[Path | None, typer.Option(help="Answer of GET /team/list, as a JSON file.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Answer of GET /key/list?return_full_object=true, as a JSON file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Translate a configuration of LiteLLM, and name each setting that is left out."""
    found = [each.value for each in documents(_read(source), str(source))]
    if len(found) != 1 or not isinstance(found[0], dict):
        raise CommandFailed(f"{source} must be one document with a model_list.")
    if to.exists():
        raise CommandFailed(f"{to} is there already: name a new directory with --to.")
    directory = to.absolute()
    made = translate(found[0], org, directory, _lists(teams), _lists(keys))
    _write(directory, made)
    if as_json:
        left = [{"place": place, "why": why} for place, why in made.left]
        print_json({"directory": str(directory), "left_out": left, "notes": made.notes})
        return
    counts = {"models": len(made.config["models"]), "upstreams": len(made.config["upstreams"])}
    counts |= {name: len(rows) for name, rows in made.objects.items()}
    typer.echo(f"Written to {to}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ".")
    for note in made.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"Left out: {len(made.left)} settings." if made.left else "Nothing is left out.")
    for place, why in made.left:
        typer.echo(visible(f"  {place}: {why}"))
    say(f"Start it:  tollkeeper up --no-demo --config {to / CONFIG}")
    say(f"Then:      tollkeeper apply -f {to / OBJECTS} --secrets-dir secrets")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) > BYTES_MAX:
        raise CommandFailed(f"{path} has more than {BYTES_MAX} bytes.")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{path} is not UTF-8 text (at byte {error.start}).") from error


def _lists(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return read_json(_read(path))
    except ValueError as error:
        raise CommandFailed(f"{path} is no JSON: {error}.") from error


def _write(directory: Path, made: Translated) -> None:
    """All files, those with secrets for their owner alone."""
    try:
        directory.mkdir(mode=0o700, parents=True)
        for name, secret in made.secrets.items():
            (directory / KEYS).mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(directory / KEYS / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{secret}\n")
        (directory / CONFIG).write_text(written(made.config), encoding="utf-8")
        (directory / OBJECTS).write_text(written(made.objects), encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}.") from error
