"""`tollkeeper doctor`: checks whether everything that Tollkeeper needs exists and is configured correctly.

Part of the composition root: it queries each outside system through that system's package, and prints one
finding a line.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from gateway.core.billing.stand_ins import StandIns
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.credentials import peppers_of
from gateway.core.issuers import Issuer
from gateway.core.model import GENERIC, Family
from gateway.core.network import without_password
from gateway.core.times import BUNDLED, UNKNOWN_EDITION, is_old_edition, zones_edition
from gateway.counters.redis.settle_results import FAULTS
from gateway.errors import SchemaUnavailable, SettingError, StartError
from gateway.extras import install, is_installed
from gateway.feature import features
from gateway.http.upstream.pool import reach
from gateway.issuers.key_set import UnreadableKeys
from gateway.issuers.keys import Read, read_keys
from gateway.issuers.sign_in import read_provider
from gateway.local import heartbeat
from gateway.ops import doctor_redis, hints
from gateway.ops.doctor_redis import (
    ANSWER_MAX_S,
    FAILED,
    PASSED,
    UNKNOWN,
    Finding,
    clock_against,
    examine_redis,
    of_credentials,
)
from gateway.outbound.cloud import signer_of
from gateway.run.bundled_prices import missing_here
from gateway.run.health import FREE_BYTES_MIN, full_disks
from gateway.run.model_lists import ask_models
from gateway.run.process_vitals import few_files, limits_here
from gateway.settings.checking import check_ports, wanted_of
from gateway.settings.config_file import default_table
from gateway.settings.settings import PREFIX, TYPES, Settings
from gateway.settings.slips import slips
from gateway.settings.tls_files import PREFIXES
from gateway.telemetry.metrics import WITHHELD_NAMES, collect
from gateway.tls.certificates import load

_NOT_TWICE = "whether a pooler shares sessions could not be asked: two connections at once were not had"


# Findings about a connection pooler between a keeper, or the owner, and PostgreSQL.
def pooler_findings(url: str, owner_url: str) -> Iterator[Finding]:
    """Yield findings on whether a connection pooler before PostgreSQL shares sessions between clients.

    The keeper's URL may have such a pooler; a separate owner's may not.
    """
    from persistence.engine import ASK_OWNER  # heavy to load
    from persistence.poolers import is_seen_to_share  # heavy to load

    shared = is_seen_to_share(url)
    if shared is None:
        yield Finding(UNKNOWN, "postgresql pooler", _NOT_TWICE)
    elif shared:
        yield Finding(
            PASSED, "postgresql pooler", "shares sessions (transaction mode), and a keeper needs none"
        )
    owners = is_seen_to_share(owner_url) if owner_url not in ("", url) else shared
    if owner_url and owners:
        yield Finding(FAILED, "backup and archive", ASK_OWNER)
    elif owner_url and owners is None:
        yield Finding(UNKNOWN, "backup and archive", _NOT_TWICE)


# Findings about the read replica.
async def replica_findings(url: str, read_url: str, shown: str, answer_s_max: float) -> tuple[bool, str, str]:
    """Return whether the read replica can be used, the finding's subject, and a message with its lag.

    `shown` is the replica's address in the message. A replica that does not answer in time cannot be used.
    """
    from persistence.engine import examine, within  # heavy to load

    try:
        # A server that is silent does not end what is cancelled either.
        well, says = await within(examine(url, read_url), answer_s_max)
    except TimeoutError:
        well, says = False, f"gives no answer within {answer_s_max:g} s"
    rest = "" if well else "; until then all is read at TOLLKEEPER_DATABASE_URL"
    return well, "read replica", f"{shown} {says}{rest}"


T = TypeVar("T")
# What blocks is waited for this long.
BLOCKING_S_MAX = 2 * ANSWER_MAX_S
# A gateway worker that accepts fewer connections, because it may open too few files, is a failed check.
CONNECTIONS_FEW = 1_000


async def examine(settings: Settings, role: str = "all") -> AsyncIterator[Finding]:
    """Yield findings on what a process of this role (`serve`, `keeper`, or `all`) needs."""
    for finding in _examine_settings(settings, role):
        yield finding
    for finding in await listed("data directory", _examine_machine, settings, role):
        yield finding
    if settings.redis_url:
        async for finding in examine_redis(settings, role):
            yield finding
    else:
        yield Finding(
            FAILED, "redis", f"TOLLKEEPER_REDIS_URL is not set: {wanted_of('redis_url', TYPES['redis_url'])}"
        )
    if role != "serve":
        if settings.database_url:
            async for finding in _postgresql(settings, role):
                yield finding
        else:
            yield Finding(
                FAILED, "postgresql", "TOLLKEEPER_DATABASE_URL is not set (serve needs none: --for serve)"
            )
        async for finding in _examine_features(settings):
            yield finding
    if role != "keeper":
        async for finding in _examine_serving(settings):
            yield finding
    async for finding in _issuers(settings, role):
        yield finding


async def _examine_serving(settings: Settings) -> AsyncIterator[Finding]:
    """Yield findings on what serves calls: upstreams, and workers that run."""
    for target in _called(settings):
        yield await _upstream_in_use(target)
    for finding in await listed("data directory", _examine_workers, settings):
        yield finding


def _examine_settings(settings: Settings, role: str) -> Iterator[Finding]:
    """Yield findings on needed settings, on slips, and on installed extras."""
    routes = f"{len(settings.routes)} routes, {len(settings.upstreams)} upstreams"
    yield Finding(PASSED, "settings", f"read and valid: {routes}")
    needed = ("key_pepper",) if role == "serve" else ("admin_token", "key_pepper")
    for name in needed:
        if not getattr(settings, name):
            message = f"TOLLKEEPER_{name.upper()} is not set: 16 to 512 visible characters, such as "
            yield Finding(FAILED, "settings", message + "`openssl rand -base64 33` makes")
    try:
        check_ports(settings.values(), role, PREFIX)
    except SettingError as error:
        yield Finding(FAILED, "settings", error.message)
    for line in (*slips(settings, role), *_open_secrets(settings)):
        yield Finding(UNKNOWN, "settings", line)
    for extra, name in settings.extras(role).items():
        lacks = "" if is_installed(extra) else f"{name} is set, and its libraries are not installed: "
        yield Finding(not lacks, extra, lacks + install(extra) if lacks else "its libraries are installed")


def _open_secrets(settings: Settings) -> Iterator[str]:
    """Yield the files of secrets and keys that every user of this machine may read or change.

    The start does not warn of these: the files of a sidecar in Kubernetes are so on purpose.
    """
    keys = {value for name, value in settings.named().items() if name.endswith("key_file") and value}
    for path in sorted(keys.union(path for _, path in settings.secret_files)):
        with suppress(OSError):
            mode = Path(path).stat().st_mode
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                message = f"every user of this machine may read or change it (mode {stat.S_IMODE(mode):04o})"
                yield f"the file of a secret {path}: {message}: chmod 600"


def _examine_machine(settings: Settings, role: str) -> Iterator[Finding]:
    yield _data_directory(settings)
    yield examine_edition(zones_edition(), settings.time_zones, datetime.now(UTC))
    if role != "keeper":
        yield _open_files(settings)
    yield from _ports(settings, role)


def examine_edition(edition: str, source: str, now: datetime) -> Finding:
    """Return the finding on the edition of the time zones that this machine's programs read from a `source`."""
    message = f"edition {edition}, {source} (TOLLKEEPER_TIME_ZONES)"
    renew = "update Tollkeeper" if source == BUNDLED else "update the package tzdata of this machine"
    if edition == UNKNOWN_EDITION:
        return Finding(UNKNOWN, "time zones", f"{message}: see that it is of this year")
    if is_old_edition(edition, now):
        return Finding(
            UNKNOWN, "time zones", f"{message}: there are newer ones, some clocks may be wrong: {renew}"
        )
    return Finding(PASSED, "time zones", message)


def _called(settings: Settings) -> list[UpstreamTarget]:
    """Return the upstreams in use; unused ones, such as built-in ones, are omitted."""
    services = settings.services
    called = {services.shared, *(name for _, name in services.upstreams)}
    called |= {route.upstream for route in settings.routes}
    called |= {target.upstream for model in settings.models for target in model.targets}
    return [target for target in settings.upstreams if target.name in called]


def _ports(settings: Settings, role: str) -> Iterator[Finding]:
    """Yield findings on the TLS certificates of our own ports."""
    for port, port_role in (("gateway", "serve"), ("ops", "serve"), ("admin", "keeper")):
        files = settings.tls_files(port)
        if files is None or role not in {port_role, "all"}:
            continue
        try:
            found = load(files, PREFIX + PREFIXES[port].upper())
        except SettingError as error:
            yield Finding(FAILED, f"{port} port", error.message)
            continue
        end, clients_end = found.ends, found.clients_end
        if clients_end is not None and clients_end < time.time():
            place = f"{PREFIX}{PREFIXES[port].upper()}CLIENT_CA_FILE"
            message = f"an authority of its clients ended on {_day(clients_end)}: put a new one into {place}"
            yield Finding(FAILED, f"{port} port", message)
        over = end is not None and end < time.time()
        is_valid = "was valid" if over else "is valid"
        until = f"{is_valid} until {_day(end)}" if end else "is there"
        asks = ", and clients need one too" if files.authority else ""
        renew = ": put a new one there, it is in use within seconds" if over else ""
        yield Finding(not over, f"{port} port", f"its certificate {until}{asks}{renew}")


def _data_directory(settings: Settings, free_bytes_min: int = FREE_BYTES_MIN) -> Finding:
    """Return the finding on whether data directories are writable and their disks have room."""
    for place in dict.fromkeys((Path(settings.data_dir), settings.settlements_dir)):
        there = place
        while not there.exists() and there != there.parent:
            there = there.parent
        if why := _why_unwritable(there):
            message = f"{place} cannot be written by this user ({why})"
            variables = "TOLLKEEPER_DATA_DIR, or TOLLKEEPER_SETTLEMENT_LOG_DIR,"
            return Finding(
                FAILED, "data directory", f"{message}: {variables} must name a directory that can be"
            )
    full = " and ".join(full_disks(settings, free_bytes_min))
    if full:
        message = f"the disk of {full} has less than {free_bytes_min // 1024**2} MiB left"
        return Finding(FAILED, "data directory", f"{message}: make room, or what Redis does not take is lost")
    return Finding(PASSED, "data directory", f"{settings.data_dir} can be written")


def _open_files(settings: Settings, files_max: int | None = None) -> Finding:
    """Return the finding on whether a gateway worker can open enough files for its connections."""
    if few := few_files(settings, files_max):
        enough = limits_here(settings, files_max).connections_max >= CONNECTIONS_FEW
        return Finding(enough, "open files", few)
    most = settings.http.connections_max
    message = f"a process may have {files_max or heartbeat.open_files_limit():,} open files"
    return Finding(PASSED, "open files", f"{message}, enough for {most:,} connections of a gateway worker")


def _why_unwritable(place: Path) -> str:
    """Return why no file can be created in a directory; "" if one can, or if only the disk is full."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-"):
            return ""
    except OSError as error:
        return "" if error.errno == errno.ENOSPC else error.strerror or str(error)


class LeftThreads(ThreadPoolExecutor):
    """Runs each work in a thread that ends with the process: nobody waits for a disk or a name server."""

    def submit(self, work: Callable[..., T], /, *given: Any, **named: Any) -> Future[T]:
        future = Future[T]()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(work(*given, **named))
            except BaseException as error:  # noqa: BLE001  # who waits for it raises it
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Return at once."""


async def _answered(ask: Callable[..., T], *given: object) -> T:
    """Return the result of a function that blocks; raise `TimeoutError` after `BLOCKING_S_MAX`."""
    async with asyncio.timeout(BLOCKING_S_MAX):
        return await asyncio.to_thread(ask, *given)


async def listed(subject: str, ask: Callable[..., Iterable[Finding]], *given: object) -> list[Finding]:
    """Return the findings of a function that blocks, or the one that it gives no answer."""
    try:
        return await _answered(lambda: [*ask(*given)])
    except TimeoutError:
        return [Finding(FAILED, subject, f"gives no answer within {BLOCKING_S_MAX:g} s")]
    except SchemaUnavailable as error:
        hint = hints.postgresql_hint(error.message, error.sqlstate)
        return [Finding(FAILED, subject, f"{error.message}; {hint}")]


async def _examine_features(settings: Settings) -> AsyncIterator[Finding]:
    """Yield the findings of features, and last on the locks for which these, or others, had to wait."""
    for feature in features():
        async for finding in feature.findings(settings):
            yield finding
    with suppress(SchemaUnavailable, TimeoutError):  # a server that is away is named above
        for finding in await _answered(lambda: [*_examine_locks(settings.database_url)]):
            yield finding


async def _issuers(settings: Settings, role: str) -> AsyncIterator[Finding]:
    """Yield findings on whether the identity providers of callers and of console users answer."""
    if not is_installed("oidc"):
        return
    issuers = settings.issuers if role != "keeper" else ()
    providers = settings.sign_in.providers if role != "serve" else ()
    for issuer in issuers:
        yield await _issuer(issuer)
    for provider in providers:
        yield await _issuer(provider.issuer, f"sign-in by {provider.name}", read_provider)


async def _issuer(issuer: Issuer, named: str = "", read: Read = read_keys) -> Finding:
    """Report whether an issuer's keys can be read, and fit its algorithms."""
    subject = named or f"issuer {issuer.issuer}"
    try:
        found = await _answered(read, issuer)
    except (UnreadableKeys, TimeoutError) as error:
        why = str(error) or f"no answer within {BLOCKING_S_MAX:g} s"
        message = f"its keys cannot be read, so its tokens are refused: {why}"
        return Finding(FAILED, subject, f"{message}; {hints.issuer_hint(why)}")
    usable = [name for name in issuer.algorithms if any(key.fits(name) for key in found.keys)]
    if not usable:
        message = f"none of its {len(found.keys)} keys is for {', '.join(issuer.algorithms)}"
        return Finding(FAILED, subject, f"{message}: put what it signs by into `algorithms`")
    return Finding(PASSED, subject, f"{len(found.keys)} keys were read, for {', '.join(usable)}")


def _examine_workers(settings: Settings) -> Iterator[Finding]:
    """Yield findings on what this machine's workers counted: withheld header fields, and faults of holds."""
    names: dict[str, list[str]] = {}
    counted: Mapping[str, Any] = {}
    with suppress(OSError):
        counted = collect(settings.metrics_dir)
    results = {result: count for result, count in counted.get("settlements_unmatched", ()) if count}
    for result, fault in FAULTS.items():
        if count := results.get(result.name.lower()):
            yield Finding(UNKNOWN, "redis", f"{fault}: {count:,} times; {hints.UNMATCHED}")
    for upstream, name, _ in counted.get(WITHHELD_NAMES, ()):
        names.setdefault(upstream, []).append(name)
    for upstream, fields in sorted(names.items()):
        message = f"it did not get these header fields of calls: {', '.join(sorted(fields))}"
        wants = "; name those that it needs in its `headers_pass`"
        yield Finding(PASSED, f"upstream {upstream}", message + wants)


async def _upstream_in_use(target: UpstreamTarget) -> Finding:
    """Return the finding on an upstream; a built-in one without a credential is not contacted."""
    if replace(target, via=None, proxies=None) in default_table({}).upstreams:
        message = "built in, and without a credential, so it was not looked at"
        return Finding(PASSED, f"upstream {target.name}", message)
    return await upstream_finding(target)


async def upstream_finding(target: UpstreamTarget, named: str = "") -> Finding:
    """Report whether an upstream accepts connections, credentials and keys."""
    subject = named or f"upstream {target.name}"
    try:
        end = await reach(target, ANSWER_MAX_S)
    except ssl.SSLCertVerificationError as error:
        message = f"its certificate cannot be verified: {error.verify_message}"
        return Finding(FAILED, subject, f"{target.base_url}: {message}; {hints.upstream_hint(message)}")
    except (OSError, TimeoutError) as error:
        why = str(error).strip() or f"no answer within {ANSWER_MAX_S:g} s"
        message = f"{target.base_url} does not accept connections ({why})"
        return Finding(FAILED, subject, f"{message}; {hints.upstream_hint(why)}")
    signer = signer_of(target)
    if signer is not None:
        late = f"no answer within {BLOCKING_S_MAX:g} s"
        with suppress(TimeoutError):
            await _answered(signer.renew, time.time())
            late = ""
        if why := late or signer.why:
            message = f"its credentials by auth: {target.auth} cannot be had, so its calls are refused"
            return Finding(FAILED, subject, f"{message}: {why}")
    taken, key = await _keys_of(target) if not named else (True, "")
    until = f", its certificate is valid until {_day(end)}" if end else ""
    through = f" through the proxy {target.via}" if target.via is not None else ""
    return Finding(taken, subject, f"{target.base_url} accepts connections{through}{until}{key}")


async def _keys_of(target: UpstreamTarget) -> tuple[bool | None, str]:
    """Return whether an upstream accepts each of its keys (None: unknown), and the message."""
    from gateway.core.families.registry import FAMILIES  # heavy to load

    family = FAMILIES[cast("Family", target.family or GENERIC)]
    path, fields = family.models_at, dict(family.batches[0].headers) if family.batches else {}
    if not path or target.path or target.auth != "header":
        return True, "; whether it takes our key is unknown: it has no free path to ask at"
    well: bool | None = True
    message = "; it takes our key"
    for number, key in enumerate(target.keys or ((),)):
        status, _ = await ask_models(target, path, {**fields, **dict(key)}, ANSWER_MAX_S)
        if status in {401, 403}:
            place = target.place_of_key(number)
            return False, f", and answers {status} to GET {path}: put a valid key into {place}"
        if status != 200:
            well = None
            message = (
                f"; whether it takes our key is unknown: GET {path} is answered {status or 'by nothing'}"
            )
    return well, message


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


async def _postgresql(settings: Settings, role: str) -> AsyncIterator[Finding]:
    """Yield findings on the database as the keeper's user sees it, and on a separate owner."""
    from persistence.schema.database import refuse_other  # heavy to load
    from persistence.schema.migrate import schema_status  # heavy to load
    from persistence.schema.standing import NEEDED
    from persistence.server_certificate import certificate_end  # heavy to load

    url = settings.database_url
    shown = without_password(url)
    try:
        found = await _answered(schema_status, url)
        if found.clock is not None:
            yield Finding(*clock_against("PostgreSQL", found.clock, time.time()))
        refuse_other(found)
        end = await _answered(certificate_end, url)
    except StartError as error:
        yield Finding(FAILED, "postgresql", f"{shown}: {error.message}")
        return
    except Exception as error:  # noqa: BLE001  # the driver's message is the finding
        first = (str(error).strip().splitlines() or [f"no answer within {BLOCKING_S_MAX:g} s"])[0]
        code = error.sqlstate if isinstance(error, SchemaUnavailable) else ""
        yield Finding(FAILED, "postgresql", f"{shown}: {first}; {hints.postgresql_hint(first, code)}")
        return
    until = f", its certificate is valid until {_day(end)}" if end else ""
    newer = f", newer than this program's {NEEDED}, which runs on it" if found.is_newer() else ""
    yield Finding(PASSED, "postgresql", f"{shown} has schema version {found.version}{newer}{until}")
    # A keeper without other processes needs no owner, unless it archives.
    lone = role == "keeper" and not any(feature.archives_calls(settings) for feature in features())
    owner_url = settings.database_owner_url if lone else settings.owner_url
    looks: list[tuple[str, Callable[..., Iterable[Finding]], tuple[object, ...]]] = [
        ("postgresql user", _examine_users, (url, settings.owner_url)),
        ("postgresql pooler", pooler_findings, (url, owner_url)),
        ("rows", _examine_set_aside, (url,)),
        ("prices", _examine_prices, (url, settings.stand_ins)),
        ("postgresql", _examine_maxima, (settings, url)),
    ]
    if settings.key_pepper:
        looks.append(("pepper", of_credentials, (url, peppers_of(settings))))
    for subject, look, given in looks:
        for finding in await listed(subject, look, *given):
            yield finding
    if settings.database_read_url:
        shown = without_password(settings.database_read_url)
        yield Finding(*await replica_findings(url, settings.database_read_url, shown, BLOCKING_S_MAX))


def _examine_users(url: str, owner_url: str) -> Iterator[Finding]:
    for seen in doctor_redis.postgresql_user_findings(url, owner_url):
        yield Finding(*seen)


def _examine_set_aside(url: str) -> Iterator[Finding]:
    """Yield findings on accounts in quarantine, on dead letters, and on keys and overrides that are held."""
    from persistence.examining import few, set_aside  # heavy to load

    accounts, letters, keys, overrides = set_aside(url)
    if accounts:
        message = (
            f"accounts in quarantine: {len(accounts):,} ({few(accounts)}), and what they use becomes no rows"
        )
        yield Finding(FAILED, "rows", f"{message}; {hints.QUARANTINE}")
    if letters:
        yield Finding(FAILED, "rows", f"dead letters, which are no rows: {letters:,}; {hints.LETTERS}")
    if keys or overrides:
        message = f"behind a restore, keys live in PostgreSQL and refused as Redis knows them: {keys:,}"
        others = f"overrides that Redis knows otherwise than PostgreSQL: {overrides:,}"
        yield Finding(FAILED, "rows", f"{message}, {others}; {hints.HELD}")
    if not (accounts or letters or keys or overrides):
        yield Finding(PASSED, "rows", "no account is in quarantine, and there is no dead letter")


def _examine_prices(url: str, stand_ins: StandIns) -> Iterator[Finding]:
    """Yield findings on bundled prices that are not stored, and on steps whose calls a budget of money refuses."""
    from persistence.examining import few, unpriced_steps  # heavy to load

    if says := missing_here(url):
        yield Finding(UNKNOWN, "prices", says)
    if url and (budgets := unpriced_steps(url, stand_ins)):
        message = "budgets of money with steps to models that have no price, so no call goes as these"
        yield Finding(UNKNOWN, "prices", f"{message}: {few(budgets)}; {hints.UNPRICED_STEPS}")


def _examine_locks(url: str) -> Iterator[Finding]:
    if not url:
        return
    from persistence.examining import table_locks  # heavy to load

    for tables, of_rows, pid, seconds in table_locks(url):
        by = "a prepared transaction" if pid is None else f"pid {pid}"
        how_long = "" if seconds is None else f", for {seconds:,.0f} s"
        mends = hints.PREPARED if pid is None else hints.LOCKED.format(pid)
        rows = f"rows of {tables} are held" if tables else "rows are held"
        what = rows if of_rows else f"{tables} is locked"
        yield Finding(FAILED, "postgresql", f"{what} by {by}{how_long}: {mends}")


def _examine_maxima(settings: Settings, url: str) -> Iterator[Finding]:
    """Yield upstreams without a known maximum of output, if the gateway adds one to calls."""
    from persistence.schema.roles import binding_rules  # heavy to load

    rules = binding_rules(url)
    if not rules:
        return
    for target in _called(settings):
        if _takes_any_maximum(target):
            rule_list = " and ".join(rules)
            message = f"there are {rule_list}, so calls without a maximum are sent with one; nobody says"
            yield Finding(
                UNKNOWN,
                f"upstream {target.name}",
                f"{message} how much it takes: state `context` (a number, or `listed`) or `output_max` of it",
            )


def _takes_any_maximum(target: UpstreamTarget) -> bool:
    """Return whether we know no maximum of output tokens for an upstream that may serve any models."""
    facts = target.facts
    known = facts is not None and (facts.listed or facts.output_max is not None or facts.context is not None)
    built_in = target.base_url in {upstream.base_url for upstream in default_table({}).upstreams}
    return target.family in {"", "openai"} and not known and not built_in
