"""Each setting is given wrong values: refused by a line that says what is valid, or harmless for a reason here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import SettingError
from gateway.settings.settings import LINES, NAMES, PREFIX, SECRETS, load
from tests.settings.test_controls import LINE_BREAK, valid, variables

__all__ = ["valid"]

# Valid values in the words of docs/settings.md, each with its settings.
_SAID = {
    "a URL beginning with redis:// or redis+cluster:// or redis+sentinel:// or redis+shards:// or rediss:// or"
    " rediss+cluster:// or rediss+sentinel:// or rediss+shards:// or unix://": "redis_url",
    "a URL beginning with postgres:// or postgresql:// or postgresql+psycopg://":
        "database_url database_owner_url database_read_url",
    "a URL beginning with smtp:// or smtps://": "smtp_url",
    "a URL beginning with https:// or http:// or file://": "usage_feed_url",
    "a URL beginning with https:// or http://":
        "stripe_api_url console_url agents_keeper_url agents_collector_url",
    "a URL such as https://llm.example.com, without a slash at its end": "public_url",
    "16 to 512 visible ASCII characters":
        "admin_token readonly_token key_pepper stripe_api_key stripe_webhook_secret usage_feed_token",
    "16 to 512 visible ASCII characters, up to 3 with a space between two": "earlier_key_peppers",
    "the path of a file":
        "redis_ca_file redis_cert_file redis_key_file tls_cert_file tls_key_file tls_client_ca_file"
        " admin_tls_cert_file admin_tls_key_file admin_tls_client_ca_file ops_tls_cert_file ops_tls_key_file"
        " ops_tls_client_ca_file ledger_key_file invoice_logo invoice_addresses smtp_ca_file proxy_ca_file"
        " agents_settings_file",
    "the path of a directory": "data_dir settlement_log_dir",
    "an address or name of this machine, such as 127.0.0.1": "gateway_host admin_host ops_host",
    "true or false": "access_log webhook_private_addresses agents show_upstream",
    "one of debug, info, warning, error": "log_level",
    "one of charge_observed, release, charge_hold": "reclaim",
    "one of 429, 402": "spent_status",
    "one of free, refuse": "unpriced_models",
    "one of bundled, system": "time_zones",
    "one of month, day": "partitions_by",
    "one of off, draft, finalize": "invoice_schedule",
    "one of charge_automatically, send_invoice": "stripe_collection",
    "one of off, lago, openmeter, webhook, file": "usage_feed",
    "at most 200 of <model or beginning*>=<model that has a price>, with commas between": "price_as",
    "* or at most 200 origins such as https://app.example.com, with commas between": "cors_origins",
    "two letters of ISO 3166, such as DE": "invoice_country",
    "three letters of ISO 4217, such as PLN": "invoice_tax_currency",
    "a text such as DE123456789": "invoice_tax_number",
    "an IBAN, with or without blanks": "invoice_iban",
    "a text, with line breaks if needed": "invoice_issuer invoice_seller invoice_notes",
    "up to ten numbers of days with commas between, such as 7,14,21": "dunning_reminder_days",
    "name@example.com": "smtp_from",
    "1 to 128 characters that can be seen": "usage_feed_code",
    "a whole number from 0 to 65535": "gateway_port admin_port ops_port",
    "a whole number from 1 to 16": "redis_servers",
    "a whole number from 1 to 32": "invoices_at_once",
    "a whole number from 1 to 256": "workers",
    "a whole number from 8 to 10000": "head_fields_max",
    "a whole number from 0 to 900000": "stripe_checkout_max",
    "a whole number from 1 to 1000000":
        "waiting_entries_max connections_max tls_handshakes_max sockets_max upstream_connections_max"
        " upstream_idle_connections_max",
    "a whole number from 1 to 1000000 messages a second": "live_messages_s",
    "a whole number from 1 to 10000000": "objects_max",
    "a whole number from 1000 to 100000000": "usage_feed_waiting_max",
    "a whole number from 1 to 1000000000000": "organization_rows_an_hour",
    "a whole number from 1 to 9007199254740991": "usage_tokens_max",
    "a whole number from 0 to 9007199254740991": "drain_tokens_max",
    "a whole number from 0 to 720 hours": "invoice_grace_hours",
    "a whole number from 0 to 365 days": "invoice_due_days dunning_block_days",
    "a whole number from 35 to 36500 days": "stripe_events_keep_days",
    "a whole number from 0 to 36500 days":
        "calls_keep_days usage_hours_keep_days events_keep_days reratings_keep_days",
    "a whole number from 0 to 1200 months":
        "archive_token_ledger_after_months archive_credit_transactions_after_months"
        " archive_feature_usage_after_months archive_calls_after_months archive_audit_log_after_months",
    "a whole number from 1024 to 1048576 bytes": "head_bytes_max",
    "a whole number from 1048576 to 17179869184 bytes": "settlement_log_bytes_max cache_bytes_max",
    "a whole number from 1024 to 4294967296 bytes":
        "capacity_waiting_bytes_max heads_bytes_max body_bytes_max sockets_kept_bytes_max buffered_bytes_max"
        " drain_bytes_max",
    "a number from 0.5 to 0.999": "hold_quantile",
    "a number from 0 to 1": "lease_fraction",
    "a number above 0, at most 1":
        "capacity_waiting_share sockets_share upstream_connections_share buffered_share",
    "a number from 1 to 3600 seconds": "hold_ttl_s jobs_interval_s",
    "a number from 2 to 3600 seconds": "worker_silent_s_max",
    "a number from 0 to 3600 seconds": "upstream_cooling_s_max",
    "a number from 1 to 86400 seconds": "lease_s_max",
    "a number from 60 to 31622400 seconds": "object_ttl_s",
    "a number above 0, at most 360000 seconds": "organization_cpu_s_an_hour organization_work_s_an_hour",
    "a number above 0, at most 86400 seconds":
        "redis_wait_s start_wait_s shutdown_grace_s flush_interval_s settlement_log_s head_s tls_handshake_s"
        " body_s keep_alive_s upstream_connect_s upstream_first_byte_s upstream_idle_s upstream_keep_alive_s"
        " upstream_resolve_s upstream_resolve_stale_s upstream_address_s capacity_wait_s drain_s"
        " socket_idle_s",
}  # fmt: skip
WORDS = {name: words for words, names in _SAID.items() for name in names.split()}
_PAIR = "is not set, but TOLLKEEPER_"
# What is said of a value that is of the right form, and does not fit another setting or this machine.
OTHERS = {
    **{f"{port}tls_{kind}_file": _PAIR for port in ("", "admin_", "ops_") for kind in ("cert", "key")},
    "proxy_ca_file": "expected a PEM file of the authority of a proxy",
    "admin_token": "expected another one than TOLLKEEPER_ADMIN_TOKEN",
    "readonly_token": "expected another one than TOLLKEEPER_ADMIN_TOKEN",
}
# Any text is a path. What is no file is refused where it is opened, or told by `slips`.
_PATHS = {
    name for words in ("file", "directory") for name in WORDS if WORDS[name] == f"the path of a {words}"
}
# Any text may be a name, a note or a code. An IBAN and a seller are read, and a host is listened on, at the
# start of the process that uses it, which refuses a wrong one.
_TEXTS = {
    "gateway_host", "admin_host", "ops_host", "invoice_issuer", "invoice_seller", "invoice_notes",
    "invoice_tax_number", "invoice_iban", "usage_feed_code",
}  # fmt: skip
# Nobody needs these maxima to be lower.
_UNBOUNDED = {"organization_rows_an_hour", "usage_tokens_max", "drain_tokens_max"}
# An empty one is as none: the default.
_NONE_BY_DEFAULT = {name for name in NAMES if load({}).values()[name] == ""} - {
    "redis_url", "database_url", "database_owner_url", "database_read_url", "smtp_url", "usage_feed_url",
    "stripe_api_url", "console_url", "agents_keeper_url", "agents_collector_url", "smtp_from",
}  # fmt: skip
_SEEN = {"proxy_ca_file"}  # a path, and read by each process
Change = Callable[[dict[str, str], str], str]
# Each kind of wrong value, and the settings for which it is harmless.
WRONG: dict[str, tuple[Change, set[str]]] = {
    "a space": (lambda values, name: values[name] + " ", set(LINES)),
    "two words": (lambda _, name: "some thing", (_PATHS | _TEXTS) - _SEEN),
    "an empty one": (lambda _, name: "", _NONE_BY_DEFAULT - {name for name in OTHERS if "tls" in name}),
    "10^12": (lambda _, name: str(10**12), (_PATHS | _TEXTS | _UNBOUNDED) - _SEEN),
    "another unit": (lambda _, name: "30s", (_PATHS | _TEXTS) - _SEEN),
}


def refused(environ: dict[str, str], config: Path | None = None) -> str:
    """Return why these settings are refused; empty if they are not."""
    try:
        load(environ, config)
    except SettingError as error:
        return error.message
    return ""


def test_each_setting_has_words_for_its_valid_values() -> None:
    absent = [refused(variables({name: "some thing"})) for name in NAMES if name not in WORDS]
    assert not absent, f"name each in `_SAID`, beside what is expected: {absent}"
    assert not WORDS.keys() - {*NAMES}


@pytest.mark.parametrize("kind", WRONG)
def test_load_says_the_valid_values_or_takes_a_harmless_value(valid: dict[str, str], kind: str) -> None:
    change, harmless = WRONG[kind]
    for name in NAMES:
        message = refused(variables(valid | {name: change(valid, name)}))
        assert "\n" not in message
        assert name not in SECRETS or "hush" not in message
        is_said = message.startswith(f"{PREFIX}{name.upper()}=") and " is not valid: " in message
        is_said = is_said and message.endswith(f"expected {WORDS[name]}")
        is_said = is_said and (kind != "a space" or "it begins or ends with a space" in message)
        is_said = is_said or (name in OTHERS and OTHERS[name] in message)
        assert (bool(message), is_said) == ((False, False) if name in harmless else (True, True)), (
            name,
            message,
        )


def test_load_says_the_valid_values_for_a_value_of_the_wrong_type(
    valid: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    for name in NAMES:
        for value in ([1], {}, None):
            path.write_text(json.dumps({"settings": valid | {name: value}}))
            message = refused({}, path)
            assert message.startswith(f"{path}: settings.{name}=")
            assert message.endswith(f"is not valid: expected {WORDS[name]}")
        path.write_text(json.dumps({"settings": valid | {name: valid[name] + "\n"}}))
        assert (LINE_BREAK in refused({}, path)) == (name not in LINES)


@pytest.mark.parametrize("name", ["TOLLKEEPER_WORKERS", "tollkeeper_workers", "WORKERS"])
def test_load_says_how_a_setting_is_written_in_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"settings": {name: 4}}))
    right = "did you mean workers? It is written in lower case, without the prefix"
    assert refused({}, path) == f"{path}: settings.{name}='4' is not a setting; {right}"


def test_load_refuses_a_variable_in_small_letters() -> None:
    right = "did you mean TOLLKEEPER_WORKERS? It is written in capitals"
    assert refused({"TOLLKEEPER_workers": "4"}) == f"TOLLKEEPER_workers='4' is not a setting; {right}"


@pytest.mark.parametrize("name", ["GATEWAY_HOST", "ADMIN_HOST", "OPS_HOST", "DATA_DIR"])
def test_load_refuses_an_empty_host_or_data_directory(name: str) -> None:
    """It would be every address of the machine, and the directory that the process begins in."""
    assert refused({f"{PREFIX}{name}": ""}).startswith(f"{PREFIX}{name}='' is not valid: expected ")
