"""Secrets that files say: which settings may, what is refused of a file, and that no content is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.errors import SettingError
from gateway.files import SECRET_BYTES_MAX
from gateway.settings.settings import NAMES, PREFIX, SECRETS, WatchedFiles, load, reread

HUSH = "hush-hush-hush-hush"
VALUES = {
    "redis_url": "redis://u:hush@h",
    "database_url": "postgresql://u:hush@h/d",
    "database_owner_url": "postgresql://o:hush@h/d",
    "database_read_url": "postgresql://r:hush@h/d",
    "smtp_url": "smtp://u:hush@h",
    "admin_token": HUSH,
    "readonly_token": HUSH,
    "key_pepper": HUSH,
    "earlier_key_peppers": HUSH,
    "stripe_api_key": HUSH,
    "stripe_webhook_secret": HUSH,
    "usage_feed_token": HUSH,
}


def refused(environ: dict[str, str], config: Path | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(environ, config)
    assert "hush" not in caught.value.message
    return caught.value.message


def written(place: Path, content: str | bytes) -> str:
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(place)


def test_every_setting_that_holds_a_credential_is_a_secret() -> None:
    assert set(VALUES) == SECRETS
    assert not {f"{name}_file" for name in SECRETS} & {*NAMES}  # else it would be unclear which is meant


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_may_say_any_secret(tmp_path: Path, name: str, end: str) -> None:
    path = written(tmp_path / "x", VALUES[name] + end)
    environ = {f"{PREFIX}{name.upper()}_FILE": path, f"{PREFIX}SMTP_FROM": "a@example.com"}
    settings = load(environ)
    assert settings.value(name) == VALUES[name]
    assert settings.secret_files == ((name, path),)
    config = Path(
        written(tmp_path / "c.yaml", f"settings: {{{name}_file: {path}, smtp_from: a@example.com}}")
    )
    assert load({}, config).value(name) == VALUES[name]


def test_a_file_said_by_the_environment_stands_above_the_configuration(tmp_path: Path) -> None:
    theirs, ours = written(tmp_path / "theirs", "t" * 16), written(tmp_path / "ours", "o" * 16)
    config = Path(
        written(tmp_path / "c.yaml", f"settings: {{admin_token_file: {theirs}, key_pepper: {'p' * 16}}}")
    )
    settings = load({f"{PREFIX}ADMIN_TOKEN_FILE": ours, f"{PREFIX}KEY_PEPPER_FILE": ours}, config)
    assert (settings.admin_token, settings.key_pepper) == ("o" * 16, "o" * 16)
    settings = load({f"{PREFIX}ADMIN_TOKEN": "v" * 16}, config)
    assert settings.admin_token == "v" * 16
    assert "admin_token" not in dict(settings.secret_files)  # whose file is not looked at again


def test_both_ways_at_once_are_refused_and_both_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x", HUSH)
    said = refused({f"{PREFIX}ADMIN_TOKEN": HUSH, f"{PREFIX}ADMIN_TOKEN_FILE": path})
    assert said == f"{PREFIX}ADMIN_TOKEN and {PREFIX}ADMIN_TOKEN_FILE are both set: expected one of them"
    config = Path(written(tmp_path / "c.yaml", f"settings: {{key_pepper: {HUSH}, key_pepper_file: {path}}}"))
    assert "settings.key_pepper and" in refused({}, config)
    assert "OPENAI_API_KEY and OPENAI_API_KEY_FILE" in refused(
        {"OPENAI_API_KEY": "a", "OPENAI_API_KEY_FILE": path}
    )
    empty = load({f"{PREFIX}ADMIN_TOKEN": "", f"{PREFIX}ADMIN_TOKEN_FILE": path})  # as compose hands it on
    assert empty.admin_token == HUSH
    assert load({f"{PREFIX}ADMIN_TOKEN": HUSH, f"{PREFIX}ADMIN_TOKEN_FILE": ""}).admin_token == HUSH


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\r\n\n", "is empty"),
        (b"hush" * (SECRET_BYTES_MAX // 4) + b"h", f"is larger than {SECRET_BYTES_MAX} bytes"),
        (b"hush\0hush-hush-hush", "holds a NUL byte"),
        (b"\xffhush-hush-hush-hush", "is no text in UTF-8"),
        (b"hush-hush-hush-hush\nhush\n", "holds more than one line"),
        (b"hush", "is not valid: expected 16 to 512 visible ASCII characters"),
        (b"hush hush hush hush", "is not valid: expected 16 to 512 visible ASCII characters"),
    ],
)
def test_a_file_that_holds_no_secret_stops_the_start(tmp_path: Path, content: bytes, said: str) -> None:
    path = written(tmp_path / "x", content)
    message = refused({f"{PREFIX}KEY_PEPPER_FILE": path})
    assert said in message
    assert f"{PREFIX}KEY_PEPPER_FILE={path!r}" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "no regular file"),
    ):
        assert f"={str(path)!r} cannot be read: {why}" in refused({f"{PREFIX}ADMIN_TOKEN_FILE": str(path)})
    assert "cannot be read: no path" in refused({"OPENAI_API_KEY_FILE": "a\0b"})
    url = written(tmp_path / "url", "mysql://u:hush@h")
    assert "DATABASE_URL_FILE" in refused({f"{PREFIX}DATABASE_URL_FILE": url})


def test_what_is_no_secret_has_no_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x", "3")
    assert "TOLLKEEPER_WORKERS_FILE=" in refused({f"{PREFIX}WORKERS_FILE": path})
    config = Path(written(tmp_path / "c.yaml", "settings: {workers_file: x}"))
    assert "settings.workers_file='x' is not a setting" in refused({}, config)


def test_credentials_of_upstreams_may_be_in_files(tmp_path: Path) -> None:
    mine, theirs = written(tmp_path / "mine", "sk-mine\n"), written(tmp_path / "theirs", "sk-theirs\n")
    headers = "{X-Key: 'k ${MINE}', X-Other: '${NONE:-n}'}"
    text = f"upstreams: {{s: {{base_url: 'https://s.example', headers: {headers}}}}}"
    settings = load(
        {"MINE_FILE": mine, "OPENAI_API_KEY_FILE": theirs}, Path(written(tmp_path / "c.yaml", text))
    )
    sent = {target.name: dict(target.headers) for target in settings.upstreams}
    assert sent["s"] == {"x-key": "k sk-mine", "x-other": "n"}
    assert sent["openai"] == {"authorization": "Bearer sk-theirs"}
    assert set(settings.secret_files) == {("", mine), ("", theirs)}
    assert settings.of_gateways.secret_files == ()
    assert f"NONE_FILE={str(tmp_path / 'gone')!r} cannot be read" in refused(
        {"MINE_FILE": mine, "NONE_FILE": str(tmp_path / "gone")}, tmp_path / "c.yaml"
    )


def test_a_secret_is_read_again_as_it_was_at_first(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert reread("admin_token", written(path, HUSH + "\n")) == HUSH
    written(path, "short")
    with pytest.raises(SettingError, match="TOLLKEEPER_ADMIN_TOKEN_FILE"):
        reread("admin_token", str(path))


def test_a_file_has_changed_once_and_a_missing_one_too(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    written(one, "a")
    watched, both = WatchedFiles(), [str(one), str(other)]
    assert watched.changed(both)
    assert not watched.changed(both)
    written(other, "b")
    assert watched.changed(both)
    (tmp_path / "new").write_text("a")
    (tmp_path / "new").replace(one)  # as secrets are replaced: the same size, another file
    assert watched.changed(both)
    assert not watched.changed(both)
    other.unlink()
    assert watched.changed(both)
    assert not watched.changed(both)
    watched.forget()
    assert watched.changed(both)
