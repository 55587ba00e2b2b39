"""`tollkeeper import litellm`: translates a configuration of LiteLLM into files of ours, with a list of
omissions.

Each translated part is removed from the source, so the remaining parts are the omissions. What remains of a record of
LiteLLM's database, and is not known to limit nothing, is a lost limit: its keys are not made. Pure except for the
command itself. Credentials are referenced, or written to separate files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.configuration import documents
from gateway.cli.admin.imports import (
    EVERYBODY,
    KEYS,
    LIMIT,
    PLAN,
    Pages,
    Translated,
    deliver,
    free_name,
    leaves,
    read_rows,
    read_source,
)
from gateway.cli.admin.output import AsJson
from gateway.core.accounts import tags as tag_names
from gateway.core.accounts.budget_amounts import wrong_amount
from gateway.core.accounts.budgets import MONEY, USER
from gateway.core.accounts.intervals import INTERVALS, TOTAL
from gateway.core.accounts.windows import FIRST_USE, read_length
from gateway.core.billing.price_book import folded
from gateway.core.calls.routes import TARGETS_MAX
from gateway.core.families.registry import ALL
from gateway.core.model import INTEGER_MAX
from gateway.core.times import rfc3339

# Maximum of models in one list.
LIST_MAX = 100
ENVIRON = "os.environ/"


@dataclass(frozen=True, slots=True)
class Provider:
    """The address and API of a LiteLLM provider; `path` is an upstream's path template."""

    family: str
    base_url: str
    variable: str
    path: str = ""
    # Authentication without a key; region and project: our name, LiteLLM's, and the variable.
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
    "litellm_proxy": Provider("openai", "", "LITELLM_PROXY_API_KEY"),
    "ollama": Provider("openai", "http://localhost:11434", ""),
    "ollama_chat": Provider("openai", "http://localhost:11434", ""),
}
# Prefixes of model names without a provider.
_PLAIN = {
    "claude": "anthropic", "gemini": "gemini", "gpt-": "openai", "o1": "openai", "o3": "openai",
    "o4": "openai", "chatgpt-": "openai", "text-embedding-": "openai", "anthropic.": "bedrock",
}  # fmt: skip
# Prefixes that LiteLLM reads before a provider's name of a model.
_HINTS = {
    "openai": r"responses/",
    "azure": r"(?:responses|o_series|gpt5_series)/",
    "xai": r"responses/",
    "bedrock": r"(?:converse|invoke|[a-z]{2}(?:-[a-z]+)+-\d)/",
}
# The upstreams of default routes, with their addresses and variables.
_BUILT_IN = {
    target.name: target for family in ALL if family.target is not None for target in [family.target({})]
}
# Names in lists of models that stand for several models.
_ALL_MODELS, _MODELS_OF_TEAM = "all-proxy-models", "all-team-models"
# The routes of a key that may call models.
_ANSWERS = "llm_api_routes"
_NAME = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,256}")
_INTERVALS = {spelled: interval.name for interval in INTERVALS.values() for spelled in interval.durations}
# LiteLLM's rates.
_RATES = {
    "rpm_limit": "requests_per_minute", "tpm_limit": "tokens_per_minute", "max_parallel_requests": "concurrency",
}  # fmt: skip
# Members that name the organization or project of a row.
_OWNERS = {"org_id": "organizations", "organization_id": "organizations", "project_id": "projects"}
# LiteLLM's words for durations, and other names of a limit's fields.
_DURATIONS = {"hourly": "1h", "daily": "1d", "weekly": "7d", "monthly": "30d"}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_SPELLED = {"time_period": "budget_duration", "budget_limit": "max_budget"}
# The name of a tag for LiteLLM's tags that are no `name:value`.
_TAG = "tag"
_NAME_AND_VALUE = re.compile(rf"({tag_names.NAME}):(.+)", re.ASCII)
# Members of records that limit nothing, by the tables and answers of LiteLLM 1.110.2 of 30 November 2026: facts, which
# are no settings, and settings. In parts that people fill freely, nothing limits but by its name. Any other member may.
_RECORD = re.compile(
    r"(?s)(?:(?:keys|teams|users|tags|organizations|projects)\[\d+\]|litellm_settings\.tag_budget_config)\.(.*)"
)
_NEST = (
    r"(?:(?:team_memberships|organization_memberships|members|budget_limits)\[\d+\]\.)?"
    r"(?:(?:litellm|team_member)_budget_table\.)?"
)
_FACT = re.compile(
    rf"{_NEST}(?:token|key_name|key_count|key_type|api_key|(?:key|user|team|organization|project)_alias|description"
    r"|(?:created|updated)_by|(?:created|updated|settings_updated|reset|budget_reset|last_refreshed|last_rotation|key_rotation"
    r"|last_breach_check)_at|last_active|(?:total_|team_|user_|team_member_)?spend|model_spend.*|(?:sso_)?user_id|user_email"
    r"|team_id|admins|members|members_with_roles|budget_source|rotation_count|soft_budget_cooldown)"
    r"|(?:members_with_roles\[\d+\]|team_member)\.(?:user_id|user_email|role)|.*budget_table\.budget_id"
    # Rows of other lists, and whose rows they are.
    r"|(?:user|created_by_user|users|teams|keys)(?:[.\[].*)?"
    r"|(?:members|organization_memberships)\[\d+\]\.(?:organization_id|user\..*)"
)
_SETTING = re.compile(
    rf"{_NEST}(?:budget_duration|(?:team_)?soft_budget|temp_budget_\w+|user_role|policies|allowed_cache_controls"
    r"|allowed_routes|access_group_ids|auto_rotate|rotation_interval|\w*object_permission_id|team_member_permissions"
    r"|default_team_member_models|model_id|allow_team_guardrail_config|password_reset_required|guardrails)"
    r"|metadata\.(?:temp_budget_\w+|soft_budget\w*|[rt]pm_limit_type|throttle_on_budget_exceeded)"
)
_FREE = re.compile(
    r"(?:\w*metadata|router_settings|aliases|team_model_aliases|permissions|\w*object_permission|litellm_model_table)(.*)"
)
# Settings of LiteLLM's configuration that limit calls of all keys.
_OF_ALL = re.compile(
    r"(?s)(?:litellm|general|router)_settings\.(?!max_ui_session_|default_soft_|(?:default_)?max_internal_user_)"
    r"(?:\w*budget|\w*_budget_id|provider_budget_config|\w*max_parallel_requests|max_batch_file_\w+"
    r"|max_file_downloads_per_minute|default_internal_user_params\.(?:\w*limits?|max_parallel_requests|model_max_budget))(?:[.[].*)?"
    r"|model_list\[\d+\]\.litellm_params\.default_api_key_\w+"
)
# Reasons for omissions, by a pattern of the part's path; other parts have no counterpart.
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
    (r".*temp_budget_.*", "raise the budget of this one: tollkeeper budget raise BUDGET … --who USER"),
    (r".*(?:soft_budget|budget_alert).*", "give a budget thresholds, and a webhook"),
    (r".*budget_id", "make the budget that it names: tollkeeper budget create"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lists:
    """The rows of lists of LiteLLM's API; None for a list that is not given."""

    teams: list[Json] | None = None
    keys: list[Json] | None = None
    users: list[Json] | None = None
    tags: list[Json] | None = None
    organizations: list[Json] | None = None
    projects: list[Json] | None = None


NO_LISTS = Lists()


def translate(
    source: Json, organization: str, directory: Path, now: datetime, lists: Lists = NO_LISTS
) -> Translated:
    """Translate a configuration, and the lists from LiteLLM's API.

    Keys that are blocked, or expired at `now`, are left out.
    """
    work = _Translation(deepcopy(source), organization, directory, now)
    work.models()
    lists = deepcopy(lists)
    work.budgets()
    work.tags(lists.tags)
    work.owners("organizations", lists.organizations)
    work.owners("projects", lists.projects)
    work.users(lists.users)
    work.teams(lists.teams, lists.keys)
    return work.done()


class _Translation:
    def __init__(self, source: Json, organization: str, directory: Path, now: datetime) -> None:
        self._source, self._owner, self._directory, self._now = source, organization, directory, now
        self._result = Translated()
        self._credentials: dict[str, Json] = {}
        self._credentials_used: set[str] = set()
        # Names of models by LiteLLM's access group; whether unlisted names are allowed, too.
        self._groups: dict[str, list[str]] = {}
        self._any_model = False
        self._shut_models: list[str] = []
        self._upstreams: dict[str, Json] = {}
        self._targets: dict[str, list[Json]] = {}
        self._budgets: list[Json] = []
        self._users: list[Json] = []
        self._tags: list[str] = []
        # Places of limits that no object says, with the reason; whose keys are not made for that, with the reason: of
        # nobody, of users by tenant (empty: of any). Why keys of an organization or a project are not, empty if they are.
        # Tags with a limit, and whether it is lost; none are known without the list. Members' rates by tenant and user,
        # with their place.
        self._lost: list[tuple[str, str]] = []
        self._nobody = ""
        self._barred: dict[tuple[str, str], str] = {}
        self._owners: dict[tuple[str, str], str] = {}
        self._limited_tags: dict[str, bool] = {}
        self._knows_tags = False
        self._known_users: set[str] = set()
        self._rates: dict[tuple[str, str], tuple[Json, str]] = {}
        self._has_own: set[str] = set()

    def models(self) -> None:
        """Translate models with their credentials, fallbacks and aliases."""
        for row in _rows(self._source.get("credential_list")):
            self._credentials[str(row.get("credential_name"))] = dict(row.get("credential_values") or {})
        for number, row in enumerate(_rows(self._source.get("model_list"))):
            self._model(row, f"model_list[{number}]")
        for row in _rows(self._source.get("credential_list")):
            if str(row.get("credential_name")) in self._credentials_used:
                row.clear()
        for place in ("litellm_settings", "router_settings"):
            self._fallbacks(place)
        self._aliases()
        is_empty = self._source.get("model_list") and not self._targets and not self._any_model
        prefixes = tuple(folded(name[:-1]) for name in self._targets if name.endswith("*"))
        # Without a list of models, or by a prefix, a key could call those that are left out.
        if is_empty or any(
            name not in self._targets and (not self._model_list() or folded(name).startswith(prefixes))
            for name in self._shut_models
        ):
            self._nobody = "model_list: models are left out, and no list of the others keeps keys from these"
            self._result.shut.append(("model_list", f"{self._nobody}: no key is made"))

    def _model(self, row: Json, place: str) -> None:
        """Translate a model of LiteLLM's configuration to a target; note the reason if it is left out."""
        name, params = str(row.get("model_name") or ""), row.get("litellm_params")
        info = row["model_info"] if isinstance(row.get("model_info"), dict) else {}
        if not isinstance(params, dict):
            return
        fault = self._fault_of_name(name, params, info)
        if fault:
            self._leave(place, f"{name}: {fault}")
            row.clear()
        if fault or (target := self._target(place, params)) is None:
            return
        del row["model_name"]
        self._budget(params, f"Model {name}", place, model=name)
        if lost := self._take_lost():
            self._shut_models.append(name)
            self._result.shut.append((place, f"{name}: {lost}: this target is not taken over"))
            return
        if name == "*":
            self._pass_any(place, target)
            return
        known = self._targets.setdefault(name, [])
        if target not in known and len(known) == TARGETS_MAX:
            self._leave(f"{place}.litellm_params", f"{name} has {TARGETS_MAX} targets already")
        elif target not in known:
            known.append(target)
        for group in info.pop("access_groups", None) or ():
            self._groups.setdefault(str(group), []).append(name)
        if len(known) > 1:
            self._note(
                "Of a name with several targets, the first one is asked, and the next one where it fails."
            )

    def _fault_of_name(self, name: str, params: Json, info: Json) -> str:
        """Return the reason why a model cannot have this name, empty if it can."""
        asked = str(params.get("model") or "")
        if not _NAME.fullmatch(name):
            return "a name has 1 to 256 visible characters, and no comma"
        if info.get("team_id"):
            return "a model of one team: put it under models, and on the list of other tenants"
        if "*" in name.removesuffix("*"):
            return "a * stands at the end of a name alone"
        if asked.count("*") > name.count("*"):
            return f"a * in {asked} has nothing to stand for"
        if any(folded(name) == folded(other) and name != other for other in self._targets):
            return "a name that differs in case alone is the same one"
        return ""

    def _pass_any(self, place: str, target: Json) -> None:
        """Allow model names that are not listed, if the source has a catch-all row for a built-in upstream.

        Otherwise note the row as left out. `place` is the row's position in the source, and `target` its
        target.
        """
        upstream = self._upstreams[target["upstream"]]
        if target == {"upstream": upstream["family"], "model": "*"}:
            self._any_model = True
            self._note(
                "Names of models that are not listed go by their paths, with the variables OPENAI_API_KEY, "
                "ANTHROPIC_API_KEY and GEMINI_API_KEY: unset those that nobody is to use."
            )
            return
        why = "a name for all: nothing but the usual upstreams takes any name; list those that are called"
        self._leave(f"{place}.model_name", f"{why} at {target['upstream']}")

    def _target(self, place: str, params: Json) -> Json | None:
        """Return the upstream and model of a deployment, or None if the gateway cannot call it.

        `place` is the position of the deployment in the source, for the note about it.
        """
        asked, named = str(params.get("model") or ""), params.pop("litellm_credential_name", None)
        params |= {**self._credentials.get(str(named), {}), **params}
        self._credentials_used.add(str(named))
        provider, model = _provider_and_model(asked, str(params.get("custom_llm_provider") or ""))
        known, base = PROVIDERS.get(provider), _text(params.get("api_base"))
        fault = _fault_of_target(known, provider, model, base)
        if named is not None and str(named) not in self._credentials:
            fault = f"credential_list has no {named}"
        if known is None or fault:
            self._leave(f"{place}.litellm_params.model", f"{asked}: {fault}")
            params.pop("model", None)
            return None
        for name in ("model", "api_base", "custom_llm_provider"):
            params.pop(name, None)
        upstream: Json = {"base_url": base.rstrip("/") or known.base_url, "family": known.family}
        _sign_in(upstream, known, params)
        if known.path:
            upstream["path"] = known.path
        elif base and known.family == "openai" and not provider.startswith("ollama"):
            _cut_version(upstream)
        if provider == "azure":
            self._complete_azure(upstream, params)
        headers = {
            str(name).lower(): _text(value)
            for name, value in dict(params.pop("extra_headers", None) or {}).items()
        }
        if organization := _text(params.pop("organization", None)):
            headers["openai-organization"] = organization
        if headers:
            upstream["headers"] = upstream.get("headers", {}) | headers
        if not known.auth and (key := self._key(provider, known, params.pop("api_key", None))):
            upstream["keys"] = [key]
        return {"upstream": self._upstream(provider, upstream), "model": model}

    def _complete_azure(self, upstream: Json, params: Json) -> None:
        """Complete an Azure upstream: the API's version in the query, or only a path for the v1 API."""
        version = params.pop("api_version", None)
        upstream["headers"] = {"api-key": "{key}"}
        if upstream["base_url"].endswith("/openai/v1"):
            upstream["path"] = "/{operation}"
            return
        shown = _text(version) or "${AZURE_API_VERSION:-2024-10-21}"
        upstream["query"] = {"api-version": shown}

    def _upstream(self, provider: str, wanted: Json) -> str:
        """Return the name of the upstream `wanted`, and add it if it is new.

        Upstreams with different keys are different. The name of a built-in upstream is only used for an equal
        one, because default routes lead to it.
        """
        for number in range(1, len(self._upstreams) + 3):
            name = provider.replace("_", "-") + (f"-{number}" if number > 1 else "")
            if name in _BUILT_IN and not _is_built_in(name, wanted):
                continue
            if self._upstreams.setdefault(name, wanted) == wanted:
                return name
        raise AssertionError(provider)

    def _key(self, provider: str, known: Provider, value: object) -> Json:
        """Return where our configuration finds a key: in an environment variable or in a new file.

        `value` is the key's setting in LiteLLM: a plain text is written into the file. Return {} for no key.
        """
        text = str(value or "")
        if text.startswith(ENVIRON):
            return {"env": text.removeprefix(ENVIRON)}
        if not text:
            return {"env": known.variable} if known.variable else {}
        secrets = self._result.secrets
        file = next((file for file, kept in secrets.items() if kept == text), "")
        file = file or f"{provider.replace('_', '-')}-{len(secrets) + 1}"
        secrets[file] = text
        return {"file": str(self._directory / KEYS / file)}

    def _fallbacks(self, place: str) -> None:
        """Append the targets of each model's fallbacks to the targets of the model.

        `place` is the part of the source that lists fallbacks.
        """
        settings = self._source.get(place)
        for row in _rows(settings.pop("fallbacks", None)) if isinstance(settings, dict) else ():
            for name, others in row.items():
                targets_ = [target for other in _list(others) for target in self._targets.get(str(other), ())]
                if name not in self._targets or not targets_:
                    self._leave(
                        f"{place}.fallbacks.{name}",
                        "no model of this name, or none behind it, was taken over",
                    )
                    continue
                known = self._targets[name]
                known += [target for target in targets_ if target not in known]
                if beyond := known[TARGETS_MAX:]:
                    del known[TARGETS_MAX:]
                    why = f"{len(beyond)} targets are more than the {TARGETS_MAX} that a model has"
                    self._leave(f"{place}.fallbacks.{name}", why)

    def _aliases(self) -> None:
        """Set for each alias of a model group the targets of its model."""
        settings = self._source.get("router_settings")
        aliases = settings.pop("model_group_alias", None) if isinstance(settings, dict) else None
        for alias, model in (aliases or {}).items():
            name = str(model.get("model") if isinstance(model, dict) else model)
            if name in self._targets:
                self._targets[str(alias)] = list(self._targets[name])
            else:
                self._leave(f"router_settings.model_group_alias.{alias}", f"no model {name} was taken over")

    def budgets(self) -> None:
        """Translate the budgets of all calls and of each user."""
        settings = self._source.get("litellm_settings")
        settings = settings if isinstance(settings, dict) else {}
        self._budget(settings, "All calls", "litellm_settings")
        lost, self._lost = self._lost, []
        users = settings.get(place := "default_internal_user_params")
        if not isinstance(users, dict) or users.get("max_budget") is None:
            names = ("max_internal_user_budget", "internal_user_budget_duration")
            self._budget(settings, "Each user", "litellm_settings", names, each="user", **self._own_keys())
        else:
            self._budget(users, "Each user", f"litellm_settings.{place}", each="user", **self._own_keys())
        if why := self._take_lost():
            self._barred[self._own_keys().get("tenant", ""), ""] = why
        self._lost = lost
        known = {left for left, _ in self._result.left}
        for path, value in leaves(self._source, ""):
            if path not in known and value is not False and _OF_ALL.fullmatch(path):
                self._lose(path, "it limits calls of all keys, and has no counterpart")
        if self._lost:
            place = self._lost[0][0]
            self._nobody = self._take_lost()
            self._result.shut.append((place, f"{self._nobody}: no key is made"))

    def _own_keys(self) -> Json:
        """Return the selector of users' own keys: a user's amount does not count calls of a team's key."""
        settings = self._source.get("general_settings")
        counts_all = isinstance(settings, dict) and settings.get("apply_user_budget_to_team_keys")
        return {} if counts_all else {"tenant": EVERYBODY}

    def owners(self, kind: str, rows: list[Json] | None) -> None:
        """Read the limits of organizations or projects: keys and teams of any that has one are not made."""
        for number, row in enumerate(rows or ()):
            place, owner = f"{kind}[{number}]", str(row.pop(f"{kind[:-1]}_id", ""))
            if row.get("models") == [_ALL_MODELS]:
                del row["models"]
            self._lose_tags(row, place)
            self._note_rest(row, place)
            self._owners[kind, owner] = lost = self._take_lost()
            if lost:
                self._result.shut.append((place, f"{owner}: {lost}: no key of it is made"))

    def _own(self, row: Json, place: str) -> None:
        """Report the organization and project of a row as lost limits, unless they are known to have none."""
        for field, kind in _OWNERS.items():
            owner = row.pop(field, None)
            why = self._owners.get((kind, str(owner)), f"no list of --{kind} has it")
            if why and owner not in (None, ""):
                self._lose(f"{place}.{field}", f"{owner}: {why}")

    def users(self, users: list[Json] | None) -> None:
        """Add the budgets, limits and models of the list `users`: overrides of the budget of each user."""
        usual = next((row for row in self._budgets if row.get("each") == USER), None)
        for number, row in enumerate(users or ()):
            place, user = f"users[{number}]", str(row.pop("user_id", ""))
            self._known_users.add(user)
            before = row.get("max_budget")
            self._own_budget(row, user, f"User {user}", place, usual, **self._own_keys())
            self._windows_besides(row, f"User {user}", place, user=user, **self._own_keys())
            if lost := self._take_lost():
                self._barred[self._own_keys().get("tenant", ""), user] = lost
            elif before is not None:
                self._has_own.add(user)
            self._models_besides(row, f"User {user}", place, user=user)
            limits = self._limits(row, place)
            own = self._models_of(row, place) | ({"limits": limits} if limits else {})
            if own:
                self._users.append({"organization": self._owner, "external_id": user, **own})
            self._own(row, place)
            self._note_rest(row, place)
            if lost := self._take_lost():
                self._barred["", user] = lost

    def tags(self, tags: list[Json] | None) -> None:
        """Add a budget for each of LiteLLM's tags that has one, from the source and from the list `tags`."""
        settings = self._source.get("litellm_settings")
        config = settings.get("tag_budget_config") if isinstance(settings, dict) else None
        for tag, limit in config.items() if isinstance(config, dict) else ():
            self._tag_budget(str(tag), limit, f"litellm_settings.tag_budget_config.{tag}")
        self._knows_tags = tags is not None
        for number, row in enumerate(tags or ()):
            place, tag = f"tags[{number}]", str(row.pop("name", ""))
            if (limit := row.pop("litellm_budget_table", None)) is not None:
                row.pop("budget_id", None)
                self._tag_budget(tag, limit, f"{place}.litellm_budget_table")
            self._note_rest(row | {"models": None, "model_info": None}, place)
            if self._take_lost():
                self._limited_tags[tag] = True

    def _tag_budget(self, tag: str, limit: Any, place: str) -> None:
        named = self._tag(tag, place)
        if named and isinstance(limit, dict):
            self._budget(_respell(limit), f"Tag {tag}", place, tags=named)
        self._note_rest(limit, place)
        is_lost = self._limited_tags.get(tag, not named)
        self._limited_tags[tag] = bool(self._take_lost()) or is_lost

    def _lose_tags(self, row: Json, place: str) -> None:
        """List the tags of a row that is no key as not translated, and those that may have a budget as lost."""
        for tag in _pop_tags(row):
            leave = self._lose if not self._knows_tags or tag in self._limited_tags else self._leave
            leave(f"{place}.metadata.tags", f"{tag}: only calls and keys have tags")

    def _tag(self, tag: str, place: str) -> Json:
        """Return the name and value that stand for a tag of LiteLLM, and declare the name; {} where none can."""
        named = _NAME_AND_VALUE.fullmatch(tag)
        name, value = (named[1], named[2]) if named and named[1] not in tag_names.RESERVED else (_TAG, tag)
        if tag_names.read_value(value) != value or not value:
            self._leave(place, f"{tag}: a value of a tag has 1 to {tag_names.CHARACTERS_MAX} characters")
            return {}
        if name not in self._tags:
            if len(self._tags) == tag_names.TAGS_MAX:
                self._leave(place, f"{tag}: an organization has {tag_names.TAGS_MAX} names of tags")
                return {}
            self._tags.append(name)
            self._note(
                f"Callers say the tag {name} in {tag_names.METADATA_FIELD}, a value a call: LiteLLM reads lists."
            )
        return {name: value}

    def _own_budget(
        self, source: Json, user: str, name: str, place: str, usual: Json | None, **selectors: Any
    ) -> None:
        """Add the budget of one user: an override of `usual`, a budget of each user; else a budget of his own.

        An amount of 0 is an override, whatever its duration: no budget has it.
        """
        amount = source.get("max_budget")
        if usual is not None and type(amount) in (int, float) and amount == 0:
            del source["max_budget"]
            source.pop("budget_duration", None)
            usual.setdefault("overrides", []).append({"who": user, "amount": "0"})
            return
        before = len(self._budgets)
        self._budget(source, name, place, user=user, **selectors)
        if len(self._budgets) == before or usual is None:
            return
        own = self._budgets[-1]
        if all(own.get(field) == usual.get(field) for field in ("interval", "window", "length")):
            self._budgets.pop()
            usual.setdefault("overrides", []).append({"who": user, "amount": own["amount"]})

    def _budgets_besides(self, source: Json, name: str, place: str, **selectors: Any) -> None:
        """Add the other budgets of a team, key or member: those of several durations, and of single models."""
        self._windows_besides(source, name, place, **selectors)
        self._models_besides(source, name, place, **selectors)

    def _windows_besides(self, source: Json, name: str, place: str, **selectors: Any) -> None:
        for number, window in enumerate(_rows(source.get("budget_limits"))):
            named = f"{name}, {_respell(window).get('budget_duration')}"
            self._budget(window, named, f"{place}.budget_limits[{number}]", **selectors)

    def _models_besides(self, source: Json, name: str, place: str, **selectors: Any) -> None:
        fallbacks = source.get("budget_fallbacks")
        chains = fallbacks if isinstance(fallbacks, dict) else {}
        limits: Any = source.get("model_max_budget")
        for model in limits if isinstance(limits, dict) else ():
            at = f"{place}.model_max_budget.{model}"
            if not isinstance(limits[model], dict):
                limits[model] = {"max_budget": limits[model]}
            steps = self._steps(model, chains, f"{place}.budget_fallbacks.{model}")
            limit = _respell(limits[model])
            if limit.get("max_budget") is not None and (other := self._named_besides(model)):
                self._lose(at, f"it also counts calls of {other}")
            self._budget(limit, f"{name}, {model}", at, model=model, **selectors, **steps)
        for model in chains:
            why = "only a model_max_budget of this model, of the same key or user, leads to its fallbacks"
            self._leave(f"{place}.budget_fallbacks.{model}", why)
        source.pop("budget_fallbacks", None)

    def _named_besides(self, model: str) -> str:
        """Return a longer name of a model whose calls LiteLLM counts as those of its last part, empty without one."""
        ends = {f"/{model}", *(f"/{model[:length]}*" for length in range(len(model) + 1))}
        return next((name for name in self._targets if name[max(0, name.rfind("/")) :] in ends), "")

    def _steps(self, model: str, chains: Json, place: str) -> Json:
        """Return the step of a model's budget that sends its calls to the model's first fallback, if it has any."""
        chain = [str(other) for other in _list(chains.pop(model, []))]
        known = [other for other in chain if other in self._targets]
        if chain and not known:
            self._leave(place, "none of these models was taken over")
        elif len(chain) > 1:
            self._leave(place, f"only the first, {known[0]}: what was substituted is not substituted again")
        if not known:
            return {}
        return {"steps": [{"at": 1, "models": {model: known[0]}, "session": "keep"}]}

    def _budget(
        self, source: Json, name: str, place: str,
        names: tuple[str, str] = ("max_budget", "budget_duration"), **selectors: Any,
    ) -> None:  # fmt: skip
        """Add a budget from a part of the source, whose fields `names` hold the amount and duration, if any.

        `name` is the budget's name, and `selectors` selects the calls that it limits.
        """
        amount_, duration = (source.get(name) for name in names)
        if amount_ is None:
            return
        window, amount = _window(duration), _number(amount_)
        faults = [fault for _, fault in wrong_amount(MONEY, amount, "")]
        if faults:
            self._lose(f"{place}.{names[0]}", f"{amount_}: an amount of money {faults[0]}")
        elif not window:
            right = f"a budget is of {', '.join(_INTERVALS)}, or of 5m to 366d"
            self._lose(f"{place}.{names[1]}", f"{duration}: {right}")
        if faults or not window:
            return
        if "window" in window:
            self._note(
                "A window of another length than an hour, a day, a week or a month begins with the first call in it."
            )
        for field in names:
            source.pop(field, None)
        name = free_name(name, {budget["name"] for budget in self._budgets})
        row = {"name": name, "organization": self._owner, "unit": MONEY, "amount": f"{amount:f}"}
        self._budgets.append({**row, **window, **selectors})

    def teams(self, teams: list[Json] | None, keys: list[Json] | None) -> None:
        """Add a tenant for each team of the list `teams`, and an API key for each key of the list `keys`.

        Without the lists, add one tenant, and one key a tenant.
        """
        by_id: dict[str, str] = {}
        shut: set[str] = set()
        tenants: list[Json] = []
        for number, row in enumerate(teams or ()):
            place, team_id = f"teams[{number}]", str(row.get("team_id"))
            if row.get("blocked"):
                self._leave(place, f"{row.get('team_alias') or team_id} is blocked: it has no tenant")
                by_id[team_id] = ""
                continue
            before = len(self._budgets)
            by_id[team_id] = name = self._tenant(row, place, tenants)
            self._budget(row, f"Team {name}", place, tenant=name)
            self._budgets_besides(row, f"Team {name}", place, tenant=name)
            self._members(row, tenants[-1], place)
            self._own(row, place)
            self._lose_tags(row, place)
            self._note_rest(row, place)
            if lost := self._take_lost():
                self._result.shut.append((place, f"{name}: {lost}: neither its tenant nor its keys are made"))
                by_id[team_id] = ""
                shut.add(team_id)
                del tenants[-1], self._budgets[before:]
        settings = self._source.get("litellm_settings")
        defaults = settings.get("default_team_settings") if isinstance(settings, dict) else None
        for number, row in enumerate(_rows(defaults)):
            team = str(row.pop("team_id", ""))
            if team and teams is None:
                self._tenant({"team_id": team}, f"litellm_settings.default_team_settings[{number}]", tenants)
        made: list[Json] = []
        rows = keys or []
        count = Counter((str(row.get("team_id")), str(row.get("user_id"))) for row in rows)
        for number, row in enumerate(rows):
            shares = count[str(row.get("team_id")), str(row.get("user_id"))] > 1
            of = str(row.get("team_id") or "")
            is_shut = bool(of) and (of in shut or of not in by_id)
            self._api_key(row, number, by_id, tenants, made, shares_rate=shares, is_shut=is_shut)
        with_keys = {(by_id.get(team_id), user) for team_id, user in count}
        for at in (at for owner, (_, at) in self._rates.items() if owner not in with_keys):
            self._leave(at, "rates of a member are those of his key, and there is none")
        if made:
            self._note("Values of keys are known to LiteLLM as hashes: each key here is a new one.")
        if not tenants or any(budget.get("tenant") == EVERYBODY for budget in self._budgets):
            self._everybody(tenants)
        if keys is None and not self._nobody:
            made = [*self._first_keys(tenant["name"] for tenant in tenants)]
        self._result.objects = {
            "organizations": [
                {"name": self._owner} | self._model_list() | ({"tags": self._tags} if self._tags else {})
            ],
            "token-plans": [{"name": PLAN}],
            "tenants": tenants,
            **({"users": self._users} if self._users else {}),
            **({"api-keys": made} if made else {}),
            **({"budgets": self._budgets} if self._budgets else {}),
        }

    def _first_keys(self, tenants: Iterable[str]) -> Iterator[Json]:
        """Yield a key for each tenant, but not where a user's limit is lost: nobody knows whose key it is."""
        lost = {home: why for (home, _), why in self._barred.items()}
        rates = {home: f"{at} has rates of one member alone" for (home, _), (_, at) in self._rates.items()}
        for name in tenants:
            if why := lost.get(name) or lost.get("") or rates.get(name):
                self._result.shut.append((f"tenants.{name}", f"first: {why}: no key is made"))
            else:
                yield {"name": "first", "tenant": {"organization": self._owner, "name": name}}

    def _members(self, team: Json, home: Json, place: str) -> None:
        """Add the budget of each member of a team, and overrides of it for members with budgets of their own.

        `home` is the team's tenant, whose users have the rates that all members have.
        """
        tenant = str(home["name"])
        metadata = team["metadata"] if isinstance(team.get("metadata"), dict) else {}
        usual = metadata.pop("team_member_budget_id", None)
        if "team_memberships" not in team:
            self._lose(f"{place}.team_memberships", "missing: save GET /team/list")
        members = [(number, row) for number, row in enumerate(_rows(team.get("team_memberships")))]
        selector: Json = {"tenant": tenant, "each": USER}
        name = f"Each of team {tenant}"
        before = len(self._budgets)
        self._budget(team, name, place, ("team_member_budget", "team_member_budget_duration"), **selector)
        tables = [
            row.get("litellm_budget_table") for _, row in members if usual and row.get("budget_id") == usual
        ]
        shared: Json = next(filter(None, [team.get("team_member_budget_table"), *tables]), {})
        shared = dict(shared)
        if len(self._budgets) == before:
            self._budget(shared, name, f"{place}.team_member_budget_table", **selector)
        if usual is not None and not shared:
            self._lose(f"{place}.metadata.team_member_budget_id", f"{usual}: no member has its budget")
        if limits := self._limits(shared, f"{place}.team_member_budget_table"):
            home["user_limits"] = limits
        self._note_rest(shared, f"{place}.team_member_budget_table")
        added = self._budgets[-1] if len(self._budgets) > before else None
        team.pop("team_member_budget_table", None)
        lost, self._lost = self._lost, []
        for number, row in members:
            user, table = str(row.pop("user_id", "")), row.get("litellm_budget_table")
            if usual and row.get("budget_id") == usual:
                row.clear()
            elif isinstance(table, dict):
                at, named = (
                    f"{place}.team_memberships[{number}].litellm_budget_table",
                    f"{user} of team {tenant}",
                )
                self._own_budget(table, user, named, at, added, tenant=tenant)
                self._budgets_besides(table, named, at, user=user, tenant=tenant)
                if own := self._limits(table, at):
                    self._rates[tenant, user] = own, at
                if own and "user_limits" in home:
                    self._lose(at, "rates of his own beside those of each member")
            self._note_rest(row, f"{place}.team_memberships[{number}]")
            if why := self._take_lost():
                self._barred[tenant, user] = why
            row.clear()
        self._lost = lost

    def _model_list(self) -> Json:
        """Return the organization's list of models, which refuses unlisted names like LiteLLM."""
        names = list(self._targets)
        if self._any_model or not names:
            return {}
        if len(names) <= LIST_MAX:
            return {"models": names}
        self._note(
            f"A list has {LIST_MAX} models at most, and here are {len(names)}: names that are not listed go "
            "by their paths, with the variables OPENAI_API_KEY, ANTHROPIC_API_KEY and GEMINI_API_KEY."
        )
        return {}

    def _api_key(
        self, row: Json, number: int, by_id: Mapping[str, str], tenants: list[Json], made: list[Json],
        *, shares_rate: bool, is_shut: bool,
    ) -> None:  # fmt: skip
        """Add an API key for the LiteLLM key `row`, unless that key is no longer usable, or a limit of it is lost.

        A key `is_shut` if one of its team is lost, and `shares_rate` if others are of the same member.
        """
        place, team_id = f"keys[{number}]", str(row.pop("team_id", None) or "")
        name = str(row.pop("key_alias", None) or row.pop("key_name", None) or f"key {number + 1}")
        if fault := self._fault_of_key(row, team_id, by_id):
            (self._result.shut if is_shut else self._result.left).append(
                (place, f"{name} {fault}: no key is made")
            )
            return
        tenant = by_id[team_id] if team_id else self._everybody(tenants)
        tenant_reference = {"organization": self._owner, "name": tenant}
        name = free_name(name, {key["name"] for key in made if key["tenant"] == tenant_reference})
        key: Json = {"name": name, "tenant": tenant_reference}
        key |= self._models_of(row, place)
        key |= {"user": user} if (user := row.pop("user_id", None)) else {}
        if user and str(user) not in self._known_users:
            self._lose(f"{place}.user_id", f"{user}: no list of --users has it")
        self._own(row, place)
        limits = self._limits(row, place)
        own, at = self._rates.get((tenant, str(user)), ({}, ""))
        if own and shares_rate:
            self._lose(at, f"rates that keys of {user} share")
        limits |= {rate: min(most, limits.get(rate, most)) for rate, most in own.items()}
        key |= {"limits": limits} if limits else {}
        key |= {"tags": tags} if (tags := self._tags_of(row, place)) else {}
        if (ends := row.pop("expires", None)) is not None:
            key["expires_at"] = rfc3339(_moment(ends))
        row.pop("blocked", None)
        if row.get("allowed_routes") == [_ANSWERS]:
            del row["allowed_routes"]
        before = len(self._budgets)
        self._budget(row, f"Key {name}", place, tenant=tenant, api_key=name)
        self._budgets_besides(row, f"Key {name}", place, tenant=tenant, api_key=name)
        self._note_rest(row, place)
        if lost := self._take_lost() or self._nobody or self._why_barred(tenant, str(user or "")):
            self._result.shut.append((place, f"{name}: {lost}: no key is made"))
            del self._budgets[before:]
        else:
            made.append(key)

    def _why_barred(self, tenant: str, user: str) -> str:
        """Return which limit of a user is lost, for keys of the tenant, empty if none is."""
        chosen = [(home, user) for home in (tenant, "")]
        if user not in self._has_own:
            chosen += [(home, "") for home in (tenant, "")]
        return next((self._barred[owner] for owner in chosen if owner in self._barred), "")

    def _tags_of(self, row: Json, place: str) -> Json:
        """Return the tags that a key fixes, one of each name."""
        at, fixed = f"{place}.metadata.tags", dict[str, str]()
        for tag in _pop_tags(row):
            named = self._tag(tag, at)
            is_lost = not self._knows_tags or self._limited_tags.get(tag, False)
            if named.keys() & fixed.keys():
                self._leave(at, f"{tag}: a call has one value of a tag")
                is_lost |= tag in self._limited_tags
            if is_lost:
                self._lose(at, f"{tag}: its budget")
            fixed = named | fixed
        return fixed

    def _fault_of_key(self, row: Json, team_id: str, by_id: Mapping[str, str]) -> str:
        """Return the reason why a key may not call models, empty if it may."""
        if row.get("blocked"):
            return "is blocked"
        if team_id and team_id not in by_id:
            return f"is of the team {team_id}, which no list of --teams has"
        if team_id and not by_id[team_id]:
            return "is of a team that is left out"
        if (routes := row.get("allowed_routes")) and _ANSWERS not in routes:
            return "asks for no models (allowed_routes)"
        try:
            ended = row.get("expires") is not None and _moment(row["expires"]) <= self._now
        except ValueError:
            return f"ends at {row['expires']}, which is no time"
        return f"has expired ({row['expires']})" if ended else ""

    def _models_of(self, row: Json, place: str) -> Json:
        """Return the list of models for a team or key; {} if it may use any model.

        The list is never wider than that of LiteLLM.
        """
        models = [str(model) for model in row.pop("models", None) or ()]
        if _ALL_MODELS in models or _MODELS_OF_TEAM in models:
            return {}
        names: dict[str, None] = {}
        for model in models:
            group = [model] if model in self._targets else self._groups.get(model, [])
            if not group:
                self._leave(
                    f"{place}.models", f"{model}: no model or access group of this name is taken over"
                )
            names |= dict.fromkeys(group or [model])
        return {"models": list(names)} if names else {}

    def _tenant(self, team: Json, place: str, tenants: list[Json]) -> str:
        name = str(team.pop("team_alias", None) or team.get("team_id") or EVERYBODY)
        team.pop("team_id", None)
        name = free_name(name, {EVERYBODY, *(tenant["name"] for tenant in tenants)})
        team.pop("blocked", None)
        row: Json = {"name": name, "organization": self._owner, "plan": PLAN} | self._models_of(team, place)
        tenants.append(row | ({"limits": limits} if (limits := self._limits(team, place)) else {}))
        return name

    def _everybody(self, tenants: list[Json]) -> str:
        if EVERYBODY not in {tenant["name"] for tenant in tenants}:
            tenants.append({"name": EVERYBODY, "organization": self._owner, "plan": PLAN})
        return EVERYBODY

    def done(self) -> Translated:
        """Return the translation: the used upstreams, the models, and notes about the rest."""
        made = self._result
        self._note_rest(self._source, "")
        used = {target["upstream"] for targets in self._targets.values() for target in targets}
        upstreams = {name: upstream for name, upstream in self._upstreams.items() if name in used}
        made.config = {"upstreams": upstreams, "models": [], "include_default_routes": True}
        for name, targets in self._targets.items():
            by = {"prefix": name[:-1]} if name.endswith("*") else {"name": name}
            made.config["models"].append({**by, "targets": targets})
            self._note_families(name, targets)
        return made

    def _note_families(self, name: str, targets: list[Json]) -> None:
        """Note which provider's API calls of a model name must use, and which targets others skip."""
        families = dict.fromkeys(self._upstreams[target["upstream"]]["family"] for target in targets)
        if list(families) == ["openai"]:
            return
        if "openai" not in families:
            apis = " or ".join(families)
            self._note(f"Callers of {name} use the API of {apis}, not OpenAI's: nothing is translated.")
        for target in targets if len(families) > 1 else ():
            family = self._upstreams[target["upstream"]]["family"]
            if family != "openai":
                self._note(
                    f"The target {target['model']} ({target['upstream']}) of {name} answers calls of the API of "
                    f"{family} alone: others pass it over."
                )

    def _limits(self, source: Json, place: str) -> Json:
        """Return the rates of a part of the source; those that no limit of ours can be are lost."""
        limits: Json = {}
        for theirs, ours in _RATES.items():
            if (most := source.get(theirs)) is None:
                continue
            number = _number(most)
            if 0 < number <= INTEGER_MAX and number == number.to_integral_value():
                del source[theirs]
                limits[ours] = int(number)
            else:
                self._lose(f"{place}.{theirs}", f"{most}: a rate is a whole number from 1 to {INTEGER_MAX}")
        return limits

    def _lose(self, place: str, why: str) -> None:
        """List a limit as not translated: its keys are then not made."""
        self._leave(place, why)
        self._lost.append((place, why))

    def _take_lost(self) -> str:
        """Return the first limit that was lost since the last time, with the reason, empty if none was."""
        lost, self._lost = self._lost, []
        return f"{lost[0][0]} cannot be said ({lost[0][1]})" if lost else ""

    def _leave(self, place: str, why: str) -> None:
        self._result.left.append((place, why))

    def _note_rest(self, rest: Any, place: str) -> None:
        """List every setting in `rest`, which is left of a part of the source: as lost if it may be a limit."""
        if isinstance(rest, dict) and isinstance(rest.get("litellm_budget_table"), dict):
            rest.pop("budget_id", None)
        known = {left for left, _ in self._result.left}
        for path, value in leaves(rest, place):
            may_limit = _may_limit(path, value)
            if may_limit and path not in known:
                self._lose(path, "it may be a limit, and has no counterpart")
            elif may_limit is False and path not in known:
                why = (why for pattern, why in _WHY if re.fullmatch(pattern, path))
                self._leave(path, next(why, "it has no counterpart"))

    def _note(self, text: str) -> None:
        if text not in self._result.notes:
            self._result.notes.append(text)


def _provider_and_model(asked: str, named: str) -> tuple[str, str]:
    """Return the provider and model of a deployment's `model` setting `asked`, such as `openai/gpt-4o`.

    `named` is the provider by another setting, and has precedence. The provider is empty if none is known.
    """
    provider, _, model = asked.partition("/")
    if named or provider not in PROVIDERS:
        provider = named or next((known for start, known in _PLAIN.items() if asked.startswith(start)), "")
        model = asked
    if provider in _HINTS:
        model = re.sub(rf"^(?:{_HINTS[provider]})+", "", model)
    if provider == "vertex_ai":
        publishers = {"gemini": provider, "claude": "vertex_ai-anthropic_models"}
        provider = next((publisher for start, publisher in publishers.items() if model.startswith(start)), "")
    return provider, model


def _fault_of_target(known: Provider | None, provider: str, model: str, base: str) -> str:
    """Return the reason why the gateway cannot call a deployment's model, empty if it can."""
    if known is None or not model:
        return "its provider's API is not known here"
    if provider == "bedrock" and "/" in model and not model.startswith("arn:"):
        return "no model that Bedrock's Converse or InvokeModel takes"
    return "" if base or known.base_url else "needs an api_base"


def _is_built_in(name: str, upstream: Json) -> bool:
    """Return whether an upstream equals the built-in upstream of this name."""
    there, [variable] = _BUILT_IN[name], _BUILT_IN[name].held
    return upstream == {"base_url": there.base_url, "family": there.family, "keys": [{"env": variable}]}


def _cut_version(upstream: Json) -> None:
    """Remove the API's version from the end of an upstream's address, as default paths contain it.

    If the address has no version, paths get none either.
    """
    if upstream["base_url"].endswith("/v1"):
        upstream["base_url"] = upstream["base_url"].removesuffix("/v1")
    else:
        upstream["path"] = "/{operation}"


def _moment(text: object) -> datetime:
    """Return the time in a text, in UTC unless it has a zone; raise `ValueError` if the text is no time."""
    moment = datetime.fromisoformat(str(text))
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _sign_in(upstream: Json, known: Provider, params: Json) -> None:
    """Set the authentication and address of an upstream that has no API key, from a deployment's `params`."""
    for ours, theirs, variable in known.places:
        upstream[ours] = _text(params.pop(theirs, None)) or f"${{{variable}}}"
        upstream["base_url"] = upstream["base_url"].replace(f"${{{ours}}}", upstream[ours])
    if known.auth:
        upstream["auth"] = known.auth


def _window(duration: object) -> Json:
    """Return the fields of a budget for a duration of LiteLLM, None for one without end; {} where none is."""
    spelled = _DURATIONS.get(str(duration), str(duration))
    interval = TOTAL if duration is None else _INTERVALS.get(spelled)
    if interval:
        return {"interval": interval}
    parsed = _DURATION.fullmatch(spelled)
    if parsed is None:
        return {}
    count, unit = int(parsed[1]), parsed[2]
    if unit == "w":
        count, unit = count * 7, "d"
    elif unit == "s":
        count, unit = count // 60 if count % 60 == 0 else 0, "m"
    length = f"{count}{unit}"
    return {"window": FIRST_USE, "length": length} if read_length(length) else {}


def _respell(limit: Json) -> Json:
    """Rename the fields of a limit to their usual names; return the limit."""
    for name in _SPELLED.keys() & limit.keys():
        limit[_SPELLED[name]] = limit.pop(name)
    return limit


def _pop_tags(row: Json) -> list[str]:
    metadata = row.get("metadata")
    return [str(tag) for tag in _list(metadata.pop("tags", None) or [])] if isinstance(metadata, dict) else []


def _may_limit(path: str, value: object) -> bool | None:
    """Return whether a part of the source that is left over may be a limit of keys; None if it is no setting."""
    if (record := _RECORD.fullmatch(path)) is None:
        return False
    if _FACT.fullmatch(record[1]) or (value is False and not LIMIT.search(record[1])):
        return None
    if _SETTING.fullmatch(record[1]):
        return isinstance(value, int | float) and not value >= 0
    free = _FREE.fullmatch(record[1])
    return free is None or LIMIT.search(free[1] or str(value)) is not None


def _number(value: object) -> Decimal:
    """Return a number of LiteLLM, 0 if it is none."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return Decimal(0)
    return number if number.is_finite() else Decimal(0)


def _text(value: object) -> str:
    """Return a text for our configuration: a reference to a variable, or the text with `$` escaped."""
    text = str(value or "")
    return f"${{{text.removeprefix(ENVIRON)}}}" if text.startswith(ENVIRON) else text.replace("$", "$$")


def _rows(value: Any) -> list[Json]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# `tollkeeper import litellm`.

Source = Annotated[Path, typer.Argument(metavar="CONFIG", help="LiteLLM's config.yaml.", show_default=False)]


def litellm(
    source: Source,
    *,
    to: Annotated[Path, typer.Option(help="A new directory for the files.")] = Path("from-litellm"),
    org: Annotated[str, typer.Option(help="The organization that teams belong to.")] = "Company",
    teams: Annotated[Pages, typer.Option(help="Answer of GET /team/list, as a JSON file.")] = None,
    keys: Annotated[
        Pages, typer.Option(help="Answers of GET /key/list?return_full_object=true, as JSON files.")
    ] = None,
    users: Annotated[Pages, typer.Option(help="Answers of GET /user/list, as JSON files.")] = None,
    tags: Annotated[Pages, typer.Option(help="Answer of GET /tag/list, as a JSON file.")] = None,
    organizations: Annotated[
        Pages, typer.Option(help="Answer of GET /organization/list, as a JSON file.")
    ] = None,
    projects: Annotated[Pages, typer.Option(help="Answer of GET /project/list, as a JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Translate a configuration of LiteLLM, and name each setting that is left out."""
    documents_ = [document.value for document in documents(read_source(source), str(source))]
    if len(documents_) != 1 or not isinstance(documents_[0], dict):
        raise CommandFailed(f"{source} must be one document with a model_list.")
    given = {
        ("teams", "team_id"): teams, ("keys", "token"): keys, ("users", "user_id"): users, ("tags", "name"): tags,
        ("organizations", "organization_id"): organizations, ("projects", "project_id"): projects,
    }  # fmt: skip
    rows = ([row for _, row in read_rows(pages, *of)] if pages else None for of, pages in given.items())
    lists = Lists(*rows)
    made = translate(documents_[0], org, to.absolute(), datetime.now(UTC), lists)
    deliver(made, to, as_json=as_json)
