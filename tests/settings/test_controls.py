"""Control characters in settings: each setting with a line break behind a valid value, from each source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme

from gateway.core.families.registry import ALL
from gateway.errors import SettingError
from gateway.features.rate_limit_service.table import read_table
from gateway.settings.secret_files import Environment
from gateway.settings.settings import LINES, NAMES, PREFIX, SECRETS, load
from tests.certificates import write

HUSH = "hush-hush-hush-hush"
URL = "https://u.example"
# A valid value of each setting whose default is empty. Settings of the group `/` are paths of files.
VALUES = {
    "redis_url": "redis://u:hush@h", "database_url": "postgresql://u:hush@h/d", "smtp_url": "smtp://u:hush@h",
    "database_owner_url": "postgresql://o:hush@h/d", "database_read_url": "postgresql://r:hush@h/d",
    "readonly_token": HUSH + "-2", "price_as": "a=b", "cors_origins": URL, "invoice_country": "DE",
    "invoice_tax_currency": "PLN", "dunning_reminder_days": "3,7", "stripe_api_url": URL,
    "usage_feed": "lago", "usage_feed_url": URL, "smtp_from": "a@example.com", "console_url": URL,
    "agents_keeper_url": URL, "agents_collector_url": URL, "public_url": URL,
}  # fmt: skip
LINE_BREAK = "ends with a line break: write it with `printf %s`"


@pytest.fixture
def valid(tmp_path: Path) -> dict[str, str]:
    """A valid value of every setting."""
    ca_file = tmp_path / "ca.pem"
    write(ca_file, trustme.CA().cert_pem.bytes())
    defaults = {name: value for name, value in load({}).named().items() if value != ""}
    values = {name: HUSH if name in SECRETS else "/somewhere" for name in NAMES}
    values |= {name: json.dumps(value).strip('"') for name, value in defaults.items()}
    return values | VALUES | {"proxy_ca_file": str(ca_file)}


def variables(values: dict[str, str]) -> dict[str, str]:
    return {f"{PREFIX}{name.upper()}": value for name, value in values.items()}


def refused(environ: dict[str, str], config: Path | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(environ, config)
    assert "hush" not in caught.value.message
    return caught.value.message


def test_load_refuses_a_line_break_behind_any_variable(valid: dict[str, str]) -> None:
    assert load(variables(valid)).unpriced_models == "free"
    for name in {*NAMES} - LINES:
        message = refused(variables(valid | {name: valid[name] + "\n"}))
        assert message.startswith(f"{PREFIX}{name.upper()} {LINE_BREAK}")
    assert f"{PREFIX}CONFIG {LINE_BREAK}" in refused({f"{PREFIX}CONFIG": "c.yaml\n"})


def test_load_refuses_a_line_break_behind_any_setting_of_a_file(
    tmp_path: Path, valid: dict[str, str]
) -> None:
    path = tmp_path / "config.yaml"
    for name in {*NAMES} - LINES:
        path.write_text(json.dumps({"settings": valid | {name: valid[name] + "\n"}}))
        assert refused({}, path).startswith(f"{path}: settings.{name} {LINE_BREAK}")
    path.write_text("settings:\n  unpriced_models: |\n    refuse\n")
    assert LINE_BREAK in refused({}, path)
    path.write_text("settings:\n  unpriced_models: |-\n    refuse\n")
    assert load({}, path).unpriced_models == "refuse"


@pytest.mark.parametrize("name", sorted(LINES))
def test_settings_of_lines_have_line_breaks_and_no_other_control_characters(name: str) -> None:
    variable = f"{PREFIX}{name.upper()}"
    assert getattr(load({variable: "One\r\n\tTwo\n"}), name) == "One\r\n\tTwo\n"
    for control, code in (("\0", "U+0000"), ("\r", "U+000D"), ("\x1b", "U+001B"), ("\x85", "U+0085")):
        assert refused({variable: f"One{control}Two\n"}) == (
            f"{variable} has a control character, {code}: expected none"
        )


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("\n", LINE_BREAK), ("\r\n", LINE_BREAK), ("\n\n", LINE_BREAK), ("\r\nx: y", "U+000D"),
        ("\t", "U+0009"), ("\x7f", "U+007F"), ("\x9f", "U+009F"),
    ],
)  # fmt: skip
def test_variables_of_providers_have_no_control_characters(control: str, said: str) -> None:
    held = {name for family in ALL if family.target is not None for name in family.target({}).held}
    assert "OPENAI_API_KEY" in held
    for name in held:
        message = refused({name: HUSH + control})
        assert message.startswith(f"{name} ")
        assert said in message


def test_variables_of_a_file_have_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    headers = {"x-key": "k ${MINE}"}
    path.write_text(json.dumps({"upstreams": {"s": {"base_url": URL, "headers": headers}}}))
    assert refused({"MINE": HUSH + "\n"}, path).startswith(f"MINE {LINE_BREAK}")
    path.write_text(json.dumps({"upstreams": {"s": {"base_url": URL, "keys": [{"env": "MINE"}]}}}))
    assert refused({"MINE": HUSH + "\n"}, path).startswith(f"MINE {LINE_BREAK}")
    table = {"gateway": "http://g", "rules": [{"name": "r", "entries": {"a": None}, "key": "${MINE}"}]}
    path.write_text(json.dumps(table))
    with pytest.raises(SettingError, match="MINE ends with a line break"):
        read_table(path, Environment({"MINE": HUSH + "\n"}))


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"upstreams": {"s": {"base_url": URL + "\n"}}}, "upstreams: s: base_url"),
        ({"upstreams": {"s\n": {"base_url": URL}}}, "upstreams"),
        ({"upstreams": {"s": {"base_url": URL, "headers": {"a": "b\n"}}}}, "upstreams: s: headers: a"),
        ({"models": [{"name": "m\n", "targets": [{"upstream": "openai"}]}]}, "models[0]: name"),
        ({"routes": [{"path": "/a\n", "upstream": "openai"}]}, "routes[0]: path"),
    ],
)
def test_texts_of_a_configuration_file_have_no_control_characters(
    tmp_path: Path, part: dict[str, object], place: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(part))
    assert refused({}, path).startswith(f"{path}: {place} {LINE_BREAK}")


def test_a_secrets_file_may_end_with_a_line_break_alone(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    environ = {f"{PREFIX}KEY_PEPPER_FILE": str(path)}
    path.write_bytes(HUSH.encode() + b"\n")
    assert load(environ).key_pepper == HUSH
    path.write_bytes(HUSH.encode() + b"\t\n")
    assert f"{PREFIX}KEY_PEPPER_FILE={str(path)!r} holds has a control character" in refused(environ)
