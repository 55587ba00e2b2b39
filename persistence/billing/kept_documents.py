"""PDF and XML of final invoices: made once, kept with their digest, and never another one."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from gateway.errors import Conflict, StoreUnavailable
from persistence.tables import invoice_document

DOCUMENT_BYTES_MAX = 32 * 1024 * 1024


def read(connection: Connection, invoice_id: int, kind: str, status: str, made: bytes = b"") -> bytes | None:
    """Read a document as it was made the first time; what is `made` is kept where nobody was first.

    `StoreUnavailable` where it is no longer what was kept.
    """
    if made:
        _keep(connection, {"invoice_id": invoice_id, "format": kind, "status": status}, made)
    here = invoice_document.c
    found = connection.execute(
        select(here.content, here.sha256).where(
            here.invoice_id == invoice_id, here.format == kind, here.status == status
        )
    ).first()
    if found is None:
        return None
    content = bytes(found.content)
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise StoreUnavailable("The document is not what was kept: its digest is another one.")
    return content


def _keep(connection: Connection, which: dict[str, object], content: bytes) -> None:
    if len(content) > DOCUMENT_BYTES_MAX:
        raise Conflict(f"The document is larger than {DOCUMENT_BYTES_MAX} bytes.")
    values = {**which, "content": content, "sha256": hashlib.sha256(content).hexdigest()}
    connection.execute(insert(invoice_document).values(values).on_conflict_do_nothing())
