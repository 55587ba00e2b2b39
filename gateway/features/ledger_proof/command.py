"""`tollkeeper ledger …`: whether rows are unchanged since they were signed, and the proof of one call."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from gateway.cli.admin.output import AsJson, print_json, waiting
from gateway.cli.databases import Config, Database, DataDir, owner_url, settings_of
from gateway.core.times import AHEAD_MAX, began
from gateway.errors import LedgerProofFailed
from gateway.features.ledger_proof.keys import is_signed, read_public
from gateway.features.ledger_proof.settings import LedgerProofSettings
from gateway.features.ledger_proof.tree import (
    LEDGERS,
    NO_MARK,
    NONE,
    LedgerSegment,
    ProvenRow,
    SignedLedger,
    leaf,
    path,
    root,
    row_text,
)
from gateway.features.ledger_proof.verifying import LedgerVerification, check_heads, check_rows
from gateway.ops.storage import FileStore, translate_errors

if TYPE_CHECKING:
    from persistence import ledger_proof as stored

NAMED_MAX = 1_000
ROWS_AT_ONCE = 10_000
KeyFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        help="File of the public or private key, else the setting's; repeat it for keys of before.",
    ),
]
Archive = Annotated[
    str | None,
    typer.Option("--archive", help="Where archived months are now, if not where they were written."),
]


def add_to_ledger(app: typer.Typer) -> None:
    """Add the commands to the section `ledger` of the program."""
    sections = {
        registered_group.name: registered_group.typer_instance for registered_group in app.registered_groups
    }
    section = sections.get("ledger")
    if section is None:
        section = typer.Typer()
        app.add_typer(section, name="ledger")
    for function in (verify, proof, key):
        section.command(function.__name__)(function)


def verify(
    *, key: KeyFiles = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="NUMBER=SHA256", help="A head that was kept elsewhere; repeat it."),
    ] = None,
    archive: Archive = None, config: Config = None, data_dir: DataDir = None, database_url: Database = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare every row of the database and the archive with what was signed, and name what differs."""
    from persistence import ledger_proof as stored  # of the commands that read it alone

    keys = _read_keys(key, config, database_url, data_dir)
    kept = dict(_parse_head(head_) for head_ in head or ())
    with (
        waiting("Comparing rows with what was signed"),
        stored.reading(owner_url(config, database_url, data_dir)) as here,
    ):
        result = verify_ledgers(here, keys, kept, archive)
    _tell(result, as_json=as_json)
    raise typer.Exit(1 if result.wrong or not result.heads else 0)


def verify_ledgers(
    here: stored.Connection, keys: Collection[bytes], kept: Mapping[int, str], archive: str | None = None
) -> LedgerVerification:
    """Compare all rows of the ledgers with the signed heads; return the result.

    `kept` are hashes of heads stored elsewhere, by number. Archived months are read at their own URL, or at
    `archive`.
    """
    from persistence import ledger_proof as stored  # of the commands that read it alone

    verification, files = LedgerVerification(), stored.archived_files(here)
    check_heads(
        stored.heads(here), stored.segments_by_head(here), keys, verification, verifies=is_signed, kept=kept
    )
    for kind, ledgers in LEDGERS.items():
        gone = [
            _rows_of_file(file, ledger, archive, verification)
            for ledger in ledgers
            for file in files
            if file.ledger == ledger.name
        ]
        check_rows(
            kind, stored.segments_by_place(here, kind), [stored.read_rows(here, kind), *gone], verification
        )
    return verification


def proof(
    request_id: Annotated[UUID, typer.Argument(metavar="REQUEST_ID", help="The id of the call.")],
    *, archive: Archive = None, config: Config = None, data_dir: DataDir = None,
    database_url: Database = None,
) -> None:  # fmt: skip
    """Print, as JSON, what a call is charged and the way from there to a signed head."""
    from persistence import ledger_proof as stored  # of the commands that read it alone

    with stored.reading(owner_url(config, database_url, data_dir)) as here:
        typer.echo(json.dumps(proven(here, str(request_id), archive), indent=1, ensure_ascii=False))


def key(
    *, key: KeyFiles = None, config: Config = None, data_dir: DataDir = None, database_url: Database = None
) -> None:
    """Print the public keys that heads are verified by, in hexadecimal: publish them."""
    for public in _read_keys(key, config, database_url, data_dir):
        typer.echo(public.hex())


def _read_keys(
    files: list[Path] | None, config: Path | None, database_url: str | None, data_dir: Path | None
) -> list[bytes]:
    """Return the public keys that are named by files, or by the setting."""
    named = [str(file) for file in files or ()]
    if not named:
        named = [settings_of(config, database_url, data_dir).select(LedgerProofSettings).ledger_key_file]
    if not all(named):
        raise LedgerProofFailed("no key is named: give --key, or set TOLLKEEPER_LEDGER_KEY_FILE")
    return [read_public(one) for one in named]


def _parse_head(text: str) -> tuple[int, str]:
    number, _, digest = text.partition("=")
    if not number.isascii() or not number.isdigit() or len(digest) != 2 * len(NONE):
        raise typer.BadParameter(f"--head {text} is not NUMBER=SHA256, such as a keeper's log has it")
    return int(number), digest.lower()


def _tell(verification: LedgerVerification, *, as_json: bool) -> None:
    """Print what the verification has found."""
    if as_json:
        print_json(
            {
                name: getattr(verification, name)
                for name in ("heads", "segments", "rows", "unsigned", "last_head")
            }
            | {"wrong": [fault._asdict() for fault in verification.wrong]}
        )
        return
    for account, seq, detail in verification.wrong[:NAMED_MAX]:
        typer.echo(f"{account}: {detail}" if seq is None else f"{account} at {seq}: {detail}")
    if more := len(verification.wrong) - NAMED_MAX:
        typer.echo(f"and {more:,} more" if more > 0 else "", nl=more > 0)
    if not verification.heads:
        typer.echo("No head is signed: nothing is proven")
        return
    verdict = f"{len(verification.wrong):,} do not agree" if verification.wrong else "all agree"
    rows = f"{verification.rows:,} rows, {verification.unsigned:,} of them not signed yet"
    typer.echo(f"{verification.heads:,} heads, {verification.segments:,} segments, {rows}: {verdict}")
    typer.echo(f"last head {verification.last_head}")


# Rows in files of an archive.

_Named = tuple[int, int, str]


def _rows_of_file(
    file: stored.ArchivedFile, ledger: SignedLedger, archive: str | None, verification: LedgerVerification
) -> Iterator[ProvenRow]:
    """Yield the rows of an archived file; report a missing, changed or unreadable file."""
    place = FileStore(archive or file.url)
    where = place.address(file.file)
    if not place.has(file.file):
        verification.say("archive", None, f"{where} is missing")
        return
    if place.digest(file.file)[1] != file.sha256:
        verification.say("archive", None, f"{where} is not what was archived")
    try:
        for owner_id, seq, text in _texts(place, file, ledger):
            yield ProvenRow(owner_id, seq, leaf(text.encode()), where)
    except (ArithmeticError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        verification.say("archive", None, f"{where} cannot be read ({type(error).__name__})")


def _texts(
    place: FileStore, file: stored.ArchivedFile, ledger: SignedLedger, **wanted: object
) -> Iterator[_Named]:
    """Yield the rows of a file that have the `wanted` values: owner, seq, and the text that is hashed."""
    arrow: Any = importlib.import_module("pyarrow")
    dataset: Any = importlib.import_module("pyarrow.dataset")
    asked = None
    for name, value in wanted.items():
        one = (
            dataset.field(name).isin(list(value))
            if isinstance(value, range)
            else dataset.field(name) == value
        )
        asked = one if asked is None else asked & one
    at = ledger.columns.index(ledger.at)
    with translate_errors(place.url):
        fragment = place.fragment(file.file, dataset.ParquetFileFormat())
        for batch in fragment.to_batches(
            columns=list(ledger.columns), filter=asked, batch_size=ROWS_AT_ONCE, use_threads=False
        ):
            moments = batch.column(at).cast(arrow.int64())
            for row, moment in zip(batch.to_pylist(), moments.to_pylist(), strict=True):
                row[ledger.at] = moment
                yield row[ledger.owner], row["seq"], row_text(ledger, row)


def _archived_rows(
    here: stored.Connection, kind: str, archive: str | None, **wanted: object
) -> Iterator[_Named]:
    """Yield the rows with the `wanted` values from archived months, at their own URL or at `archive`."""
    from persistence import ledger_proof as stored  # of the commands that read it alone
    from persistence.schema.partitions import end_of

    moment = began(str(wanted.get("request_id", "")))
    for ledger in LEDGERS[kind]:
        if wanted.keys() <= set(ledger.columns):
            for file in stored.archived_files(here):
                if file.ledger == ledger.name and (
                    moment is None or end_of(file.month) > (moment - AHEAD_MAX).date()
                ):
                    yield from _texts(FileStore(archive or file.url), file, ledger, **wanted)


def proven(here: stored.Connection, request_id: str, archive: str | None = None) -> dict[str, Any]:
    """Return the rows of a call, and the proof path from each to a signed head."""
    from persistence import ledger_proof as stored  # of the commands that read it alone

    named = stored.texts_of_request(here, request_id)
    for kind in LEDGERS:
        for owner_id, seq, text in _archived_rows(here, kind, archive, request_id=request_id):
            named[kind, owner_id, seq] = text
    if not named:
        raise LedgerProofFailed(f"no account was moved by {request_id}: there is no row to prove")
    heads = {head.number: head for head in stored.heads(here)}
    rows = []
    for (kind, owner_id, seq), text in sorted(named.items()):
        segment = stored.segment_at(here, kind, owner_id, seq)
        if segment is None or segment.head not in heads:
            raise LedgerProofFailed(
                f"{kind}:{owner_id} at {seq} is not signed yet: a head is signed every hour"
            )
        head = heads[segment.head]
        tree = stored.segments_of_head(here, head.number)
        at = [(leaf.kind, leaf.owner_id, leaf.number) for leaf in tree].index(
            (kind, owner_id, segment.number)
        )
        rows.append({
            "row": text, "path": path(_leaves(here, segment, archive), seq - segment.first_seq),
            "segment": segment.text(), "segment_path": path([leaf.leaf() for leaf in tree], at),
            "head": head.text, "key": head.key.hex(), "signature": head.signature.hex(),
        })  # fmt: skip
    return {"request_id": request_id, "rows": rows}


def _leaves(here: stored.Connection, segment: LedgerSegment, archive: str | None) -> list[bytes]:
    """Return the hashes of a segment's rows; `LedgerProofFailed` if they differ from what was signed."""
    from persistence import ledger_proof as stored  # of the commands that read it alone

    places = range(segment.first_seq, segment.last_seq + 1)
    found = dict(stored.leaves_between(here, segment))
    if len(found) < len(places):
        owner = {LEDGERS[segment.kind][0].owner: segment.owner_id}
        for _, seq, text in _archived_rows(here, segment.kind, archive, **owner, seq=places):
            found[seq] = leaf(text.encode())
    leaves = [found.get(seq, NONE) if segment.mark(seq) != NO_MARK else NONE for seq in places]
    if root(leaves) != segment.root:
        raise LedgerProofFailed(
            f"rows of {segment.account} are not what was signed: see tollkeeper ledger verify"
        )
    return leaves
