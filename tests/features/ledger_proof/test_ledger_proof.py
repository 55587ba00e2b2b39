"""Rows are proven: what is changed, missing or added since it was signed is found and named."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.background.loops import Isolation
from gateway.cli.main import run
from gateway.errors import LedgerProofFailed, StartError
from gateway.features.ledger_proof.command import proven, verify_ledgers
from gateway.features.ledger_proof.feature import FEATURE
from gateway.features.ledger_proof.keys import is_signed, read_key, read_public
from gateway.features.ledger_proof.tree import (
    LEDGERS,
    NONE,
    LedgerHead,
    LedgerKey,
    LedgerSegment,
    ProvenRow,
    cut,
    leaf,
    root,
    text_of_head,
)
from gateway.features.ledger_proof.verifying import LedgerVerification, check_heads, check_rows
from gateway.run.keeper_parts import KeeperParts
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import Settings
from persistence import ledger_proof as stored
from persistence.ledger_proof import LedgerSigner
from persistence.tables import metadata
from tests.connections import connected
from tests.features.archive.aging import Aging, clones, old
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of
from tests.search import examples
from tests.tree import ROOT

__all__ = ["clones", "old", "template"]

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = LedgerKey(PRIVATE.public_key().public_bytes_raw(), PRIVATE.sign)
KEYS = {KEY.public}
FORGERIES = 1_000


def signed(rows: list[ProvenRow], heads: int) -> tuple[list[LedgerSegment], list[LedgerHead]]:
    """Segments and heads over rows of several accounts, an equal part of each account by head."""
    last: dict[int, LedgerSegment] = {}
    segments, made, previous = list[LedgerSegment](), list[LedgerHead](), NONE
    for number in range(1, heads + 1):
        new = list[LedgerSegment]()
        for owner in sorted({row.owner_id for row in rows}):
            mine = {row.seq: row.leaf for row in rows if row.owner_id == owner}
            before = last.get(owner, LedgerSegment("tenant", owner, 0, 0, 0, 0, 0, NONE, NONE))
            up_to = max(mine) * number // heads
            new += cut(before, number, before.up_to + 1, up_to, mine)
            last[owner] = new[-1]
        text = text_of_head(
            number, "2026-01-01T00:00:00Z", len(new), root([one.leaf() for one in new]), previous
        )
        made.append(LedgerHead(number, text, KEY.public, KEY.sign(text.encode()), None))  # type: ignore[arg-type]  # when it was stored is not checked
        previous = made[-1].digest()
        segments += new
    return segments, made


def checked(
    segments: list[LedgerSegment],
    heads: list[LedgerHead],
    rows: list[ProvenRow],
    kept: dict[int, str] | None = None,
) -> LedgerVerification:
    found = LedgerVerification()
    check_heads(heads, segments, KEYS, found, verifies=is_signed, kept=kept or {})
    by_place = sorted(segments, key=lambda one: (one.owner_id, one.first_seq, one.number))
    check_rows("tenant", by_place, [iter(sorted(rows))], found)
    return found


def test_ledger_verification_names_each_of_a_thousand_forged_rows() -> None:
    drawn = random.Random(20_261)
    rows = [
        ProvenRow(owner, seq, leaf(f"{owner} {seq}".encode()))
        for owner in range(1, 6)
        for seq in range(1, 61)
        if (owner, seq) != (2, 17)  # a gap that is listed
    ]
    segments, heads = signed(rows, 4)
    assert checked(segments, heads, rows).wrong == []
    for _ in range(examples(FORGERIES)):
        forged, where, one = list(rows), drawn.randrange(len(rows)), drawn.choice(rows)
        row = forged[where]
        match drawn.choice(("change", "delete", "insert", "fill", "swap", "move", "append")):
            case "change":
                forged[where] = row._replace(leaf=drawn.randbytes(32))
                named = {(row.owner_id, row.seq, "was changed in the database")}
            case "delete":
                del forged[where]
                named = {(row.owner_id, row.seq, "is missing")}
            case "insert":
                forged.append(row._replace(leaf=drawn.randbytes(32)))
                named = {(row.owner_id, row.seq, "was added to the database")}
            case "fill":
                forged.append(ProvenRow(2, 17, drawn.randbytes(32)))
                named = {(2, 17, "was added to the database")}
            case "append":
                forged.append(ProvenRow(row.owner_id, 61, drawn.randbytes(32), beyond=True))
                named = {(row.owner_id, 61, "was added to the database: the account stands before it")}
            case "swap":
                other = forged.index(one)
                if other == where:
                    continue
                forged[where], forged[other] = row._replace(leaf=one.leaf), one._replace(leaf=row.leaf)
                named = {(each.owner_id, each.seq, "was changed in the database") for each in (row, one)}
            case _:
                if (one.owner_id, one.seq) == (row.owner_id, row.seq):
                    continue
                forged[where] = one._replace(leaf=row.leaf)
                added = (one.owner_id, one.seq, "was added to the database")
                named = {(row.owner_id, row.seq, "is missing"), added}
        found = checked(segments, heads, forged).wrong
        assert {(each.account, each.seq, each.detail) for each in found} == {
            (f"tenant:{owner}", seq, said) for owner, seq, said in named
        }


def test_ledger_verification_finds_forged_segments_signed_heads_and_signatures() -> None:
    rows = [
        ProvenRow(owner, seq, leaf(f"{owner} {seq}".encode())) for owner in (1, 2) for seq in range(1, 31)
    ]
    segments, heads = signed(rows, 3)
    kept = {3: heads[-1].digest().hex()}
    assert checked(segments, heads, rows, kept).wrong == []
    again, _ = signed([*rows[1:], rows[0]._replace(leaf=NONE[:-1] + b"1")], 3)
    other = Ed25519PrivateKey.generate()
    theirs = [
        replace(one, key=other.public_key().public_bytes_raw(), signature=other.sign(one.text.encode()))
        for one in heads
    ]
    earlier = heads[0].text.replace("2026", "2025")
    forged: list[tuple[list[LedgerSegment], list[LedgerHead], str]] = [
        (again, heads, "head 1: was changed"),
        (segments[:1] + segments[2:], heads, "head 1: was changed"),
        (segments[:1] + segments[2:], heads, "segment 2 does not follow"),
        (segments[:2] + segments[3:], heads, "no segment has the places up to 20"),
        ([replace(segments[0], marks=segments[1].marks), *segments[1:]], heads, "the marks up to 10 were"),
        (segments, heads[1:], "head 1: is missing"),
        (segments, heads[:2], "head 3: is missing"),
        (segments, theirs, "head 1: is signed by another key"),
        (segments, [replace(heads[0], signature=b""), *heads[1:]], "has a signature that is not of its text"),
        (segments, [replace(heads[0], text=earlier), *heads[1:]], "head 2: was changed"),
        (segments, [*heads[:2], signed(rows[:-1], 3)[1][2]], "head 3: is another one than was kept"),
    ]  # fmt: skip
    for forged_segments, forged_heads, said in forged:
        found = checked(forged_segments, forged_heads, rows, kept).wrong
        assert any(said in f"{one.account}: {one.detail}" for one in found), (said, found)


def test_every_column_of_a_ledger_is_signed() -> None:
    for ledgers in LEDGERS.values():
        for each in ledgers:
            assert {column.name for column in metadata.tables[each.name].columns} == set(each.columns)


async def sign(old: Aging, **more: Any) -> LedgerHead | None:
    return await LedgerSigner(old.pool, KEY, lambda *_, **__: None, head_s=0, **more).sign_if_due()


def compared(url: str, *forgery: str, kept: dict[int, str] | None = None) -> LedgerVerification:
    """What is found with these changes, as nobody of ours could make them; they are taken back."""
    with connected(url) as connection:
        connection.execute("SET session_replication_role = replica")
        for one in forgery:
            assert connection.execute(one.encode()).rowcount > 0, one
        found = verify_ledgers(connection, KEYS, kept or {})
        connection.rollback()
        return found


ODD = "E'a\"\\\\ \\n\\t\\x7f\\x01 é😀 '"
CHANGES = {
    "token_ledger": ("tenant", "tenant_id", ("amount = amount + 1", "metadata = '{}'", "api_key_id = 77")),
    "credit_transaction": ("credits", "organization_id", ("carried = carried + 1", "request_id = NULL")),
    "credit_posting": ("credits", "organization_id", ("amount = amount - 1",)),
    "feature_usage": ("spend", "organization_id", ("spend = 0 - spend - 1", "unit_prices = '\"9\"'")),
}


async def test_ledger_verification_finds_rows_changed_in_the_database_or_in_the_archive(
    old: Aging, tmp_path: Path
) -> None:
    url = old.url
    with connected(url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"UPDATE token_ledger SET feature_version = {ODD} WHERE seq % 3 = 0".encode())
    assert compared(url).heads == 0
    first = await sign(old, places_at_once=7)
    assert first is not None
    found = compared(url, kept={1: first.digest().hex()})
    assert (found.wrong, found.unsigned, found.heads) == ([], 0, 1)
    rows = found.rows
    assert rows > 150
    forge_each(url)
    # What comes later waits for the next head.
    old.use(3)
    old.store()
    assert (compared(url).wrong, compared(url).unsigned) == ([], 3)
    second = await sign(old)
    assert second is not None
    assert (second.number, compared(url).unsigned) == (2, 0)
    await archived(old, rows + 3)
    proofs(old, tmp_path)


def forge_each(url: str) -> None:
    """Change, delete, add and swap rows of each ledger: each is named by account and place."""
    drawn = random.Random(7)
    for ledger, (kind, owner, changes) in CHANGES.items():
        places = rows_of(url, f"SELECT {owner}, seq FROM {ledger} ORDER BY 1, 2")
        for change in changes:
            who, seq = drawn.choice(places)
            forged = compared(
                url, f"UPDATE {ledger} SET {change} WHERE ({owner}, seq) = ({who}, {seq})"
            ).wrong
            assert [tuple(one) for one in forged] == [(f"{kind}:{who}", seq, "was changed in the database")]
        (who, seq), *others = drawn.sample(places, min(2, len(places)))
        mine = f"WHERE ({owner}, seq) = ({who}, {seq})"
        [one] = compared(url, f"DELETE FROM {ledger} {mine}").wrong
        assert tuple(one) == (f"{kind}:{who}", seq, "is missing")
        at = '"timestamp"' if kind == "spend" or ledger == "credit_transaction" else "created_at"
        columns = ", ".join(
            f'"{name}"'
            for name in next(one for one in LEDGERS[kind] if one.name == ledger).columns
            if name not in {"id", at.strip('"')}
        )
        again = f"SELECT {columns}, {at} + interval '1 s' FROM {ledger} {mine}"
        added = f"INSERT INTO {ledger} ({columns}, {at}) {again}"
        [one] = compared(url, added).wrong
        assert tuple(one) == (f"{kind}:{who}", seq, "was added to the database")
        for _, last in others:
            swapped = f"""UPDATE {ledger} SET seq = CASE seq WHEN {seq} THEN {last} ELSE {seq} END
                WHERE {owner} = {who} AND seq IN ({seq}, {last})"""
            assert {tuple(one) for one in compared(url, swapped).wrong} == {
                (f"{kind}:{who}", place, "was changed in the database") for place in (seq, last)
            }
    forged = compared(
        url, "UPDATE ledger_segment SET root = sha256(root) WHERE (kind, number) = ('spend', 1)"
    ).wrong
    assert {one.account for one in forged} > {"head 1"}


async def archived(old: Aging, rows: int) -> None:
    """Months that went to an archive are compared where they are."""
    done = await old.archive()
    assert len(done.files) > 2
    found = compared(old.url)
    assert found.wrong == []
    assert found.rows >= rows
    file = next(old.root / one.file for one in done.files if one.ledger == "token_ledger")
    table, whole = pq.read_table(file), file.read_bytes()
    forged = table.set_column(
        table.column_names.index("amount"), "amount", [[*table["amount"].to_pylist()[:-1], 999_999]]
    ).cast(table.schema)
    pq.write_table(forged, file)
    named = {(one.account, one.seq) for one in compared(old.url).wrong}
    seq = table["seq"].to_pylist()[-1]
    assert named == {("archive", None), (f"tenant:{old.account.tenant_id}", seq)}
    file.unlink()
    gone = compared(old.url).wrong
    assert ("archive", None) in {(one.account, one.seq) for one in gone}
    assert any(one.detail == "is missing" for one in gone)
    file.write_bytes(whole)
    assert compared(old.url).wrong == []


PAGE = ROOT / "docs/ledger-proof/verify.html"


def shown(asked: list[tuple[dict[str, Any], bytes]], tmp_path: Path) -> list[list[dict[str, Any]] | str]:
    """What the page says of each proof, by its key."""
    script = PAGE.read_text().partition("<script>")[2].partition("</script>")[0]
    said = "(said) => console.log(JSON.stringify(said.message ?? said))"
    pairs = json.dumps([(proof, key.hex()) for proof, key in asked])
    each = f"for (const pair of {pairs}) await verify(...pair).then({said}, {said});"
    page = tmp_path / "page.js"
    page.write_text(f"{script}\n(async () => {{ {each} }})();")
    ran = subprocess.run([which("node") or "node", page], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def proofs(old: Aging, tmp_path: Path) -> None:
    """A call of the archive and one of the database are proven by the page alone, and forged ones are not."""
    ids = [str(one) for (one,) in rows_of(old.url, "SELECT request_id FROM feature_usage ORDER BY seq")]
    with stored.reading(old.url) as here:
        files = [one for one in stored.archived_files(here) if one.ledger == "feature_usage"]
        gone = pq.read_table(old.root / files[0].file)["request_id"].to_pylist()[3]
        assert gone not in ids
        with pytest.raises(LedgerProofFailed, match="no account was moved"):
            proven(here, "00000000-0000-7000-8000-000000000000")
        made = {one: proven(here, one) for one in (gone, ids[-1])}
    assert len(PAGE.read_text().splitlines()) <= 60
    if which("node") is None:
        pytest.skip("no node to run the page by")
    for request_id, proof in made.items():
        row = proof["rows"][0]
        forged = [
            proof | {"rows": [row | {name: row[name].replace(of, to, 1)}]}
            for name, of, to in (
                ("row", '"epoch":1', '"epoch":2'),
                ("segment", '"number":', '"number":9'),
                ("head", '"at":"2', '"at":"1'),
            )
        ]
        keys = KEY.public, bytes(32), *[KEY.public] * len(forged)
        rows, *refusals = shown([*zip((proof, proof, *forged), keys, strict=True)], tmp_path)
        assert isinstance(rows, list)
        assert {one["request_id"] for one in rows} == {request_id}
        assert {one["ledger"] for one in rows} == {"token_ledger", "credit_transaction", "feature_usage"}
        assert refusals == [
            "A head is not signed by this key.", "A row is not what was signed.",
            "A segment is not of its head.", "A head is not signed by this key.",
        ]  # fmt: skip


async def test_ledger_row_stored_late_from_a_dead_letter_is_signed_by_the_next_signed_head(
    old: Aging,
) -> None:
    mine = f"tenant_id = {old.account.tenant_id} AND seq = 5"
    letter = f"""
INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id, tenant_id, token_seq)
VALUES (0, '1-0', '', 'unreadable', {old.account.organization_id}, {old.account.tenant_id}, 5)"""
    with connected(old.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"CREATE TABLE aside AS SELECT * FROM token_ledger WHERE {mine}".encode())
        connection.execute(f"DELETE FROM token_ledger WHERE {mine}".encode())
        connection.execute(letter.encode())
        await sign(old)
        assert compared(old.url).wrong == []
        connection.execute("INSERT INTO token_ledger SELECT * FROM aside")
        connection.execute("UPDATE dead_letter SET resolution = 'redriven', resolved_at = now()")
        assert [one.detail for one in compared(old.url).wrong] == ["was added to the database"]
        await sign(old)
        assert compared(old.url).wrong == []
        named = [(f"tenant:{old.account.tenant_id}", 5, "was changed in the database")]
        assert compared(old.url, f"UPDATE token_ledger SET amount = amount + 1 WHERE {mine}").wrong == named
        named = [(f"tenant:{old.account.tenant_id}", 5, "is missing")]
        assert compared(old.url, f"DELETE FROM token_ledger WHERE {mine}").wrong == named


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        run(["ledger", *map(str, arguments)])
    return int(ended.value.code or 0), capsys.readouterr().out


async def test_ledger_commands_verify_rows_and_print_the_proof_of_a_row_and_the_public_key(
    old: Aging, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, wrong = tmp_path / "key.pem", tmp_path / "wrong.pem"
    file.write_bytes(PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    wrong.write_text("-----BEGIN PRIVATE KEY-----\n")
    assert read_key(str(file)).public == read_public(str(file)) == KEY.public
    for path in (wrong, tmp_path, tmp_path / "none"):
        with pytest.raises(StartError, match="openssl genpkey -algorithm ed25519"):
            read_key(str(path))
    with pytest.raises(LedgerProofFailed, match="no key is named"):
        run(["ledger", "verify", "--database-url", old.url])
    here = ("--key", file, "--database-url", old.url)
    assert asked(capsys, "verify", *here) == (1, "No head is signed: nothing is proven\n")
    head = await sign(old)
    assert head is not None
    kept = f"1={head.digest().hex()}"
    status, said = asked(capsys, "verify", *here, "--head", kept)
    assert status == 0
    assert "all agree" in said
    assert said.endswith(f"last head {kept}\n")
    status, said = asked(capsys, "verify", *here, "--json", "--head", f"2={'0' * 64}")
    assert (status, json.loads(said)["wrong"]) == (
        1, [{"account": "head 2", "seq": None, "detail": "is missing"}],
    )  # fmt: skip
    [(request_id,)] = rows_of(old.url, "SELECT request_id FROM feature_usage ORDER BY seq LIMIT 1")
    status, said = asked(capsys, "proof", request_id, "--database-url", old.url)
    assert (status, json.loads(said)["request_id"]) == (0, str(request_id))
    assert asked(capsys, "key", "--key", file) == (0, f"{KEY.public.hex()}\n")


def test_keeper_signs_the_ledger_only_if_a_signing_key_file_is_configured(tmp_path: Path) -> None:
    assert FEATURE.work(parts_with("")) is None
    file = tmp_path / "key.pem"
    file.write_bytes(PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    work = FEATURE.work(parts_with(str(file)))
    assert work is not None
    assert [loop.name for loop in work.loops] == ["ledger heads"]


def parts_with(key_file: str) -> KeeperParts:
    settings = Settings().with_values(ledger_key_file=key_file)
    return KeeperParts(
        settings=settings, later=KeeperSettings(settings, None, print, print), engine=None, store=None,  # type: ignore[arg-type]  # neither is asked
        counters=None, isolation=Isolation(), log=print,
    )  # fmt: skip
