"""`tollkeeper apply`, `diff` and `export` as people and pipelines call them, over the real Admin API."""

from __future__ import annotations

import asyncio
import hmac
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner, Result

from gateway.admin.configuration.words import KINDS, schema
from gateway.cli.admin.configuration import SecretFiles, SecretFormat, documents, written
from gateway.cli.admin.program import mount
from tests.admin.configuration.world import world
from tests.admin.conftest import ADMIN, Api

program = typer.Typer()
mount(program, ("apply", "diff", "export"))
COMMAND = typer.main.get_command(program)

Run = Callable[..., Awaitable[Result]]

ACME = """\
organizations:
  - name: Acme
    country: NO      # a text: nothing is guessed
    limits: {requests_per_minute: 600}
---
tenants:
  - {name: Web, organization: Acme, plan: Pro}
token-plans:
  - name: Pro
    total_amount: 1000
"""


@pytest.fixture
def run(api: Api) -> Run:
    async def invoke(*arguments: str, stdin: str | None = None, **more: str | None) -> Result:
        where = {
            "TOLLKEEPER_ADMIN_URL": str(api.client.make_url("")), "TOLLKEEPER_ADMIN_TOKEN": ADMIN, **more
        }  # fmt: skip
        return await asyncio.to_thread(CliRunner().invoke, COMMAND, list(arguments), env=where, input=stdin)

    return invoke


async def test_diff_command_shows_the_changes_of_a_file_and_apply_command_makes_the_changes(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text(ACME)
    differs = await run("diff", "-f", str(file))
    assert differs.exit_code == 1
    assert "+ tenants Acme / Web" in differs.stdout
    assert "3 to make, 0 to change, 0 to delete" in differs.stdout
    dry = await run("apply", "-f", str(file), "--dry-run")
    assert dry.exit_code == 0
    assert (await api.get("tenants")).json["items"] == []
    done = await run("apply", "-f", str(file))
    assert (done.exit_code, "Applied." in done.stderr) == (0, True)
    [acme] = (await api.get("organizations")).json["items"]
    assert acme["country"] == "NO"
    same = await run("diff", "-f", str(file))
    assert (same.exit_code, "Nothing to change: 3" in same.stdout) == (0, True)
    file.write_text(ACME.replace("1000", "2000"))
    changed = await run("diff", "-f", str(file), "--json")
    assert changed.exit_code == 1
    [change] = json.loads(changed.stdout)["changes"]
    assert change["fields"] == {"total_amount": {"before": 1000, "after": 2000}}
    assert change["at"] == f"{file}, document 2, line 9, token-plans"
    from_standard_input = await run("diff", "-f", "-", stdin=ACME)
    assert from_standard_input.exit_code == 0


async def test_apply_command_reads_every_yaml_file_of_a_directory_except_in_hidden_folders(
    run: Run, api: Api, tmp_path: Path
) -> None:
    first, second = ACME.split("---\n")
    (tmp_path / "z").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "z" / "organizations.yml").write_text(first)
    (tmp_path / "a.yaml").write_text(second)
    (tmp_path / ".git" / "config.yaml").write_text("not: ours")
    (tmp_path / "notes.txt").write_text("nor this")
    assert (await run("apply", "-f", str(tmp_path))).exit_code == 0
    assert [one["name"] for one in (await api.get("tenants")).json["items"]] == ["Web"]


async def test_diff_and_apply_errors_name_file_document_line_and_field(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text(ACME.replace("plan: Pro", "plan: Por") + "tenant: []\n")
    told = await run("diff", "-f", str(file))
    assert told.exit_code == 2
    flat = " ".join(told.stderr.split())
    assert f"{file}, document 2, line 11, tenant: unknown kind; did you mean tenants?" in flat
    file.write_text(ACME.replace("plan: Pro", "plan: Por"))
    told = await run("apply", "-f", str(file))
    assert told.exit_code == 1
    flat = " ".join(told.stderr.split())
    assert f"{file}, document 2, line 7, tenants, plan: there is no token-plan named 'Por'" in flat
    file.write_text(ACME.replace("total_amount: 1000", "total_amount: lots"))
    assert f"{file}, document 2, line 10, token-plans, total_amount: " in " ".join(
        (await run("diff", "-f", str(file))).stderr.split()
    )
    missing = await run("diff", "-f", str(tmp_path / "none.yaml"))
    assert (missing.exit_code, "cannot be read" in missing.stderr) == (2, True)


async def test_apply_command_writes_secrets_only_into_private_files_of_the_secrets_folder(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file, safe = tmp_path / "keys.yaml", tmp_path / "safe"
    keys = "api-keys:\n  - {name: CI, tenant: Web}\nwebhooks:\n  - url: https://hooks.example.com\n"
    file.write_text(f"{ACME}{keys}")
    refused = await run("apply", "-f", str(file))
    assert (refused.exit_code, "--secrets-dir" in refused.stderr) == (1, True)
    assert (await api.get("tenants")).json["items"] == [], "nothing is made whose secret nobody keeps"
    done = await run("apply", "-f", str(file), "--secrets-dir", str(safe), "--json")
    assert done.exit_code == 0, done.stderr
    files = {path.name.rpartition("-")[0]: path for path in safe.iterdir()}
    assert files.keys() == {"api-keys-acme-web-ci", "webhooks-https-hooks-example-com"}
    key = files["api-keys-acme-web-ci"].read_text().strip()
    [made] = (await api.get("api-keys")).json["items"]
    assert key.startswith(made["prefix"])
    assert api.rows("select count(*) from api_key where digest = %s", digest_of(key)) == [(1,)]
    for path in files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() not in done.stdout + done.stderr
    assert {one["path"] for one in json.loads(done.stdout)["secrets"]} == {str(one) for one in files.values()}


def digest_of(key: str) -> str:
    return hmac.new(b"pepper", key.encode(), "sha256").hexdigest()


async def test_apply_command_writes_a_secret_as_a_kubernetes_manifest(run: Run, tmp_path: Path) -> None:
    file, safe = tmp_path / "keys.yaml", tmp_path / "safe"
    file.write_text(f"{ACME}api-keys:\n  - {{name: CI, tenant: Web}}\n")
    done = await run("apply", "-f", str(file), "--secrets-dir", str(safe), "--secrets-as", "kubernetes")
    assert done.exit_code == 0, done.stderr
    [path] = safe.iterdir()
    [manifest] = [one.value for one in documents(path.read_text(), "it")]
    assert isinstance(manifest, dict)
    assert manifest["metadata"]["name"] == path.stem
    assert manifest["stringData"]["key"].startswith("tk_")


async def test_apply_command_reports_each_secret_file_not_written_and_keeps_the_written_secrets(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file, safe = tmp_path / "keys.yaml", tmp_path / "safe"
    keys = [f"  - {{name: {name}, tenant: Web}}\n" for name in ("One", "Two", "Three")]
    file.write_text(f"{ACME}api-keys:\n{''.join(keys)}")
    for name in ("One", "Two"):  # directories where files would be
        path = SecretFiles(safe, SecretFormat.FILE).path_of(
            {"resource": "api-keys", "name": f"Acme / Web / {name}"}
        )
        (path / "inside").mkdir(parents=True)
    told = await run("apply", "-f", str(file), "--secrets-dir", str(safe), "--json")
    flat = " ".join(told.stderr.split())
    assert told.exit_code == 1
    for name in ("One", "Two"):
        assert f"The secret of api-keys Acme / Web / {name} could not be written" in flat
    [kept] = json.loads(told.stdout)["secrets"]
    assert kept["name"] == "Acme / Web / Three"
    key = Path(kept["path"]).read_text().strip()
    assert api.rows("select name from api_key where digest = %s", digest_of(key)) == [("Three",)]
    assert not list(safe.glob(".*")), "nothing waits any more"


def test_each_secret_is_written_to_a_separate_file_despite_a_file_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    keeping = SecretFiles(tmp_path, SecretFormat.FILE)
    secrets = [
        {"resource": "api-keys", "name": f"k{n}", "field": "key", "value": f"v{n}"} for n in range(150)
    ]
    for each in secrets:
        keeping.prepare(each)
    keeping.path_of(secrets[70]).mkdir()  # in the way of one
    paths, lost = keeping.keep_all(secrets)
    assert [secret["name"] for secret, _ in paths] == [
        each["name"] for each in secrets if each["name"] != "k70"
    ]
    assert all(path.read_text() == f"{secret['value']}\n" for secret, path in paths)
    assert len({path for _, path in paths}) == 149
    [why] = lost
    assert why.startswith("The secret of api-keys k70 could not be written")
    keeping.tidy()
    assert len([*tmp_path.iterdir()]) == 150


@pytest.mark.parametrize(
    "wrong",
    [
        {"TOLLKEEPER_ADMIN_TOKEN": None, "TOLLKEEPER_ADMIN_TOKEN_FILE": "/nowhere/token"},
        {"TOLLKEEPER_ADMIN_URL": "https://127.0.0.1:1", "TOLLKEEPER_ADMIN_CA_FILE": "/nowhere/ca.pem"},
        {"TOLLKEEPER_ADMIN_URL": "http://127.0.0.1:1"},
    ],
)
async def test_diff_command_exits_2_on_an_error(run: Run, wrong: dict[str, str | None]) -> None:
    told = await run("diff", "-f", "-", stdin=ACME, **wrong)
    assert (told.exit_code, "Error:" in told.stderr) == (2, True), told.output
    assert (await run("apply", "-f", "-", stdin=ACME, **wrong)).exit_code == 1


async def test_apply_command_changes_no_row_if_the_secrets_folder_cannot_be_written(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file, blocked = tmp_path / "keys.yaml", tmp_path / "a-file"
    file.write_text(f"{ACME}api-keys:\n  - {{name: CI, tenant: Web}}\n")
    blocked.write_text("in the way")
    told = await run("apply", "-f", str(file), "--secrets-dir", str(blocked / "inside"))
    assert (told.exit_code, "Nothing was applied" in told.stderr) == (1, True)
    assert (await api.get("api-keys")).json["items"] == []


async def test_diff_of_freshly_exported_files_shows_no_change(run: Run, api: Api, tmp_path: Path) -> None:
    source, copy = tmp_path / "world.yaml", tmp_path / "copy"
    source.write_text(written(world()))
    done = await run("apply", "-f", str(source), "--secrets-dir", str(tmp_path / "safe"))
    assert done.exit_code == 0, done.stderr
    assert (await run("export", "--to", str(copy))).exit_code == 0
    assert {path.stem for path in copy.iterdir()} == KINDS.keys()
    same = await run("diff", "-f", str(copy))
    assert (same.exit_code, same.stderr) == (0, "")
    printed = await run("export", "--kind", "token-plans")
    [document] = documents(printed.stdout, "it")
    assert isinstance(document.value, dict)
    assert [one["name"] for one in document.value["token-plans"]] == ["Pro", "Endless"]
    assert (await run("diff", "-f", "-", stdin=printed.stdout)).exit_code == 0
    as_json = await run("export", "--json")
    assert json.loads(as_json.stdout).keys() == KINDS.keys()
    again = await run("diff", "-f", "-", stdin=as_json.stdout)
    assert (again.exit_code, again.stderr) == (0, "")
    unknown = await run("export", "--kind", "tenant")
    assert (unknown.exit_code, "token-plans" in unknown.stderr) == (1, True)


async def test_prune_mentions_a_row_already_deleted_by_hand_only_in_the_first_run(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text(ACME)
    assert (await run("apply", "-f", str(file))).exit_code == 0
    [web] = (await api.get("tenants")).json["items"]
    assert (await api.delete(f"tenants/{web['id']}")).status in {200, 204}
    file.write_text(ACME.replace("  - {name: Web, organization: Acme, plan: Pro}\n", ""))
    compared = await run("diff", "-f", str(file), "--prune")
    assert (compared.exit_code, "1 that apply made are gone already" in compared.stdout) == (0, True)
    done = await run("apply", "-f", str(file), "--prune")
    assert (done.exit_code, "Applied." in done.stderr) == (0, True)
    assert api.rows("select count(*) from applied_row where resource = 'tenants'") == [(0,)]
    again = await run("apply", "-f", str(file), "--prune")
    assert ("gone already" in again.stdout, "Applied." in again.stderr) == (False, False)


async def test_configuration_schema_printed_by_the_cli_equals_the_schema_served_by_the_api(
    run: Run, api: Api
) -> None:
    printed = json.loads((await run("export", "--schema")).stdout)
    assert printed == schema() == (await api.acting_as(None).get("configuration/schema.json")).json
    assert printed["properties"].keys() == KINDS.keys()
