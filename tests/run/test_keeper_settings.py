"""A keeper goes by other providers of identities and other proxies once their files are others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gateway.core.network import Proxy
from gateway.local.parent_pipe import ParentPipe
from gateway.run.administration import CurrentSignIns
from gateway.run.keeper_settings import KeeperSettings
from gateway.run.reload import KEEPERS_RENEWABLE, Renewal
from gateway.settings.settings import Settings, from_json, load, to_json
from tests.waiting import eventually

CONFIG = """
sign_in:
  console_url: %s
  providers:
    - {name: %s, label: %s, issuer: "https://%s.example", client_id: us}
"""
CONSOLE = "https://console.example"
Said = list[tuple[str, dict[str, object]]]


def written(file: Path, name: str, url: str = CONSOLE) -> None:
    """Put another file there."""
    file.with_name("new").write_text(CONFIG % (url, name, name.upper(), name))
    file.with_name("new").replace(file)


async def test_providers_are_taken_over_from_a_file_and_a_wrong_one_is_said(tmp_path: Path) -> None:
    file, said = tmp_path / "c.yaml", Said()
    written(file, "one")
    read = partial(load, {"TOLLKEEPER_DATA_DIR": str(tmp_path / "data")}, file)
    sign_ins = CurrentSignIns(read(), lambda event, **more: said.append((event, more)))
    kept = KeeperSettings(read(), read, lambda event, **more: said.append((event, more)), sign_ins.renew)
    keeping = asyncio.create_task(kept.keep())
    try:
        assert sign_ins.now is not None
        labels = sign_ins.now.labels
        assert labels == {"one": "ONE"}
        written(file, "two")
        await eventually(lambda: labels == {"two": "TWO"})
        assert kept.snapshot() == {"configuration_stale": 0}
        written(file, "two", "ftp://console.example")
        await eventually(lambda: kept.snapshot() == {"configuration_stale": 1})
        assert labels == {"two": "TWO"}
        written(file, "two", "https://elsewhere.example")
        await eventually(lambda: ("a restart is needed", {"setting": "sign_in", "level": "warning"}) in said)
        assert sign_ins.now.console_url == CONSOLE, "browsers were told it"
    finally:
        keeping.cancel()


async def test_secrets_by_which_others_know_a_keeper_are_taken_over_once_their_files_change(
    tmp_path: Path,
) -> None:
    """And nothing else is: whoever wrote the rest has not said that it is ready."""
    file, proxy, secret, token, pepper = (tmp_path / name for name in ("c.yaml", "p", "s", "t", "k"))
    said = Said()
    written(file, "one")
    file.write_text(file.read_text().rstrip().removesuffix("}") + ', client_secret: "${WORD}"}\n')
    proxy.write_text("http://one.test:3128")
    secret.write_text("word-of-the-client-1")
    token.write_text("token-of-the-feed-1")
    pepper.write_text("p" * 16)
    environ = {
        "HTTPS_PROXY_FILE": str(proxy), "WORD_FILE": str(secret), "TOLLKEEPER_KEY_PEPPER_FILE": str(pepper),
        "TOLLKEEPER_USAGE_FEED_TOKEN_FILE": str(token), "TOLLKEEPER_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip
    read = partial(load, environ, file)
    kept = KeeperSettings(
        read(), read, lambda event, **more: said.append((event, more)), lambda _: None, look_s=0.01
    )
    assert kept.proxies().to("https://hooks.test") == Proxy("one.test", 3128)
    keeping = asyncio.create_task(kept.keep())
    try:
        replaced(proxy, "http://us:er@two.test:81")
        await eventually(lambda: str(kept.proxies().to("https://hooks.test")) == "two.test:81")
        replaced(secret, "word-of-the-client-2")
        changed = "files of secrets read again: credentials of providers of sign-in changed: one"
        await eventually(lambda: [event for event, _ in said if event == changed])
        [provider] = kept._now.running.sign_in.providers
        assert provider.client_secret == "word-of-the-client-2"
        assert str(provider.issuer.proxies.to("https://one.example")) == "two.test:81"
        replaced(token, "token-of-the-feed-2")
        await eventually(lambda: kept.saying("usage_feed_token")() == "token-of-the-feed-2")
        assert "files of secrets read again: TOLLKEEPER_USAGE_FEED_TOKEN changed" in [
            event for event, _ in said
        ]
        replaced(pepper, "q" * 16)
        restart = "files of secrets read again: a restart is needed for TOLLKEEPER_KEY_PEPPER"
        await eventually(lambda: restart in [event for event, _ in said])
        assert kept._now.running.key_pepper == "p" * 16
        replaced(pepper, "p" * 16)
        replaced(proxy, "socks5://us:er@two.test")
        await eventually(lambda: [more for _, more in said if more.get("level") == "warning"])
        assert str(kept.proxies().to("https://hooks.test")) == "two.test:81"
        assert "us:er" not in str(said)
    finally:
        keeping.cancel()


def replaced(path: Path, content: str) -> None:
    path.with_name("other").write_text(content)
    path.with_name("other").replace(path)


class Pipe(ParentPipe):
    """A supervisor that says what a test does."""

    def __init__(self) -> None:
        self.told: Callable[[bytes], object] | None = None

    def listen(self, told: Callable[[bytes], object]) -> None:
        self.told = told


async def test_providers_are_taken_over_from_a_supervisor(tmp_path: Path) -> None:
    def settings(name: str) -> Settings:
        written(tmp_path / "c.yaml", name)
        return load({}, tmp_path / "c.yaml")

    pipe = Pipe()
    sign_ins = CurrentSignIns(settings("one"), lambda *_, **__: None)
    kept = KeeperSettings(settings("one"), pipe, lambda *_, **__: None, sign_ins.renew)
    keeping = asyncio.create_task(kept.keep())
    try:
        await eventually(lambda: pipe.told)
        assert pipe.told is not None
        await asyncio.to_thread(pipe.told, to_json(settings("two")))
        assert sign_ins.now is not None
        labels = sign_ins.now.labels
        await eventually(lambda: labels == {"two": "TWO"})
    finally:
        keeping.cancel()


class Providers(CurrentSignIns):
    """Ways to sign in that some settings cannot be used for."""

    def renew(self, settings: Settings) -> None:
        """As that, unless there is a provider called bad."""
        if [one for one in settings.sign_in.providers if one.name == "bad"]:
            raise LookupError("sk-secret")
        super().renew(settings)


async def test_what_a_keeper_cannot_go_by_is_told_and_all_that_was_before_stays(tmp_path: Path) -> None:
    """From its supervisor."""
    pipe, said = Pipe(), Said()
    environ = {"TOLLKEEPER_DATA_DIR": str(tmp_path / "data")}

    def line(name: str, token: str) -> bytes:
        written(tmp_path / "c.yaml", name)
        return to_json(load(environ | {"TOLLKEEPER_USAGE_FEED_TOKEN": token}, tmp_path / "c.yaml"))

    before = from_json(line("one", "token-of-the-feed-1"))
    renew = Providers(before, lambda *_, **__: None).renew
    kept = KeeperSettings(before, pipe, lambda event, **more: said.append((event, more)), renew)
    keeping = asyncio.create_task(kept.keep())
    try:
        await eventually(lambda: pipe.told)
        assert pipe.told is not None
        for number, wrong in enumerate((b"{", line("bad", "token-of-the-feed-2")), 1):
            await asyncio.to_thread(pipe.told, wrong)
            await eventually(lambda n=number: len(said) == n)
            assert kept.snapshot() == {"configuration_stale": 1}
        assert {more["level"] for _, more in said} == {"error"}
        assert "sk-secret" not in str(said)
        assert kept.saying("usage_feed_token")() == "token-of-the-feed-1"
        await asyncio.to_thread(pipe.told, line("two", "token-of-the-feed-2"))
        await eventually(lambda: kept.saying("usage_feed_token")() == "token-of-the-feed-2")
        assert kept.snapshot() == {"configuration_stale": 0}
    finally:
        keeping.cancel()


async def test_a_keeper_that_reads_by_itself_goes_on_where_it_cannot_go_by_what_is_written(
    tmp_path: Path,
) -> None:
    file, said = tmp_path / "c.yaml", Said()
    written(file, "one")
    read = partial(load, {"TOLLKEEPER_DATA_DIR": str(tmp_path / "data")}, file)
    sign_ins = Providers(read(), lambda *_, **__: None)
    kept = KeeperSettings(read(), read, lambda event, **more: said.append((event, more)), sign_ins.renew)
    keeping = asyncio.create_task(kept.keep())
    try:
        assert sign_ins.now is not None
        labels = sign_ins.now.labels
        written(file, "bad")
        await eventually(lambda: kept.snapshot() == {"configuration_stale": 1})
        assert [one.name for one in kept._now.running.sign_in.providers] == ["one"]
        assert labels == {"one": "ONE"}
        written(file, "two")
        await eventually(lambda: labels == {"two": "TWO"})
        await eventually(lambda: kept.snapshot() == {"configuration_stale": 0})
    finally:
        keeping.cancel()


def test_what_was_not_started_for_want_of_a_secret_needs_a_restart_and_a_changed_one_does_not() -> None:
    one, two = load({"TOLLKEEPER_STRIPE_API_KEY": "k" * 16}), load({"TOLLKEEPER_STRIPE_API_KEY": "l" * 16})
    needed = "nothing changed; a restart is needed for TOLLKEEPER_STRIPE_API_KEY"
    for before, after, said in (
        (one, two, "stripe_api_key changed"), (load({}), two, needed), (one, load({}), needed)
    ):  # fmt: skip
        now = Renewal(before, Settings, KEEPERS_RENEWABLE)
        assert now.take(after)[1] == said
        assert now.running.value("stripe_api_key") == (after if said.endswith("changed") else before).value(
            "stripe_api_key"
        )


def test_that_a_restart_is_needed_is_said_once(tmp_path: Path) -> None:
    file, said = tmp_path / "c.yaml", list[str]()
    written(file, "one")
    environ = {"TOLLKEEPER_DATA_DIR": str(tmp_path / "data")}
    kept = CurrentSignIns(load(environ, None), lambda event, **_: said.append(event))
    for _ in range(2):
        kept.renew(load(environ, file))
    assert said == ["a restart is needed"]
    written(file, "two")
    kept.renew(load(environ, file))
    assert said == ["a restart is needed"] * 2
    kept.renew(load(environ, None))
    assert len(said) == 2
