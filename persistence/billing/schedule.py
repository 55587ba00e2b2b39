"""Finds and makes the invoices that are due: of months that are over, and of fees in advance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection

from gateway.core.accounts.intervals import last_months
from gateway.core.billing.charges import ONE_DAY, ChargeSelection
from gateway.core.billing.document import Letterhead, UnseenLetters
from gateway.core.billing.invoice_schedule import (
    CONFLICT,
    REFUSED,
    SkipReason,
    left_by,
)
from gateway.core.billing.payments import PAID
from gateway.errors import Unprocessable
from persistence.billing import charges, credit_grants, invoice_build, payments
from persistence.billing.accounting_rates import read_rates
from persistence.billing.invoice_build import Draft, DraftWithLines, Final
from persistence.billing.invoice_lines import NOTHING_OWED
from persistence.billing.invoices import overlapping
from persistence.entity import EntityWrite, hold_flushes
from persistence.queries import query
from persistence.resources import audit

# A month is over when it is over both in UTC, by whose days invoices are made, and in the customer's time
# zone (`last_months`; PostgreSQL has zones of another edition). Then it is drafted, and after the grace period made final. If the total is negative it is a credit
# note, and still counts as the month's invoice. A fee in advance has no grace period, as nothing of it
# arrives late.
_DUE = """
WITH month AS (
    SELECT o.id, z.until, z.over_at
      FROM organization AS o
      JOIN unnest(cast(:zones AS text[]), cast(:untils AS date[]), cast(:overs AS timestamptz[]))
           AS z (time_zone, until, over_at) USING (time_zone)
     WHERE o.deleted_at IS NULL AND {which}
), monthly AS (
    SELECT m.id, d.id AS draft_id, (m.until - interval '1 month')::date AS period_start,
           m.until AS period_end, NULL::text AS source,
           cast(:now AS timestamptz) >= m.over_at + make_interval(hours => :grace) AS ripe
      FROM month AS m
      LEFT JOIN invoice AS d ON d.organization_id = m.id AND d.corrects_id IS NULL AND d.status = 'draft'
           AND d.source IS NULL AND d.period_end = m.until
           AND d.period_start = (m.until - interval '1 month')::date
     WHERE NOT EXISTS (SELECT FROM invoice AS i WHERE i.organization_id = m.id AND i.corrects_id IS NULL
              AND i.source IS NULL AND i.status = 'finalized' AND i.period_end = m.until
              AND i.period_start = (m.until - interval '1 month')::date)
       AND EXISTS (SELECT FROM charge AS c WHERE c.organization_id = m.id AND c.invoice_id IS NULL
              AND c.period_start < cast(m.until AS timestamp) AT TIME ZONE 'UTC')
), ahead AS (
    SELECT m.id, d.id AS draft_id, d.period_start, d.period_end, 'subscription_segment' AS source,
           true AS ripe
      FROM month AS m
      LEFT JOIN invoice AS d ON d.organization_id = m.id AND d.corrects_id IS NULL AND d.status = 'draft'
           AND d.source = 'subscription_segment'
     WHERE EXISTS (
           SELECT FROM subscription_segment AS s
            WHERE s.organization_id = m.id AND s.billing = 'advance' AND s.start_date <= :today
              AND s.end_date > :today AND s.cost > 0 AND coalesce(s.trial_end, :today) <= :today
              AND (coalesce(s.charged_until, s.start_date) <= :today OR EXISTS (
                  SELECT FROM charge AS c WHERE c.organization_id = m.id AND c.invoice_id IS NULL
                     AND c.source = 'subscription_segment' AND c.source_id = s.id
                     AND c.period_end > cast(cast(:today AS date) AS timestamp) AT TIME ZONE 'UTC')))
)
SELECT id AS organization_id, draft_id, period_start, period_end, source, ripe
  FROM (SELECT * FROM ahead UNION ALL SELECT * FROM monthly) AS due
 WHERE draft_id IS NULL OR (ripe AND :finalize)
 ORDER BY id, source NULLS LAST LIMIT :count"""
_ZONES = "SELECT DISTINCT o.time_zone FROM organization AS o WHERE o.deleted_at IS NULL AND {which}"
_AFTER, _NAMED = "o.id > :after", "o.id = ANY(cast(:organizations AS bigint[]))"
_NEXT = query("schedule.next", "Select the next organizations with due invoices",
    _DUE.format(which=_AFTER))  # fmt: skip
_NEXT_ZONES = query("schedule.next_zones", "Select the time zones of the next organizations",
    _ZONES.format(which=_AFTER))  # fmt: skip
_THESE = query("schedule.these", "Select the due invoices of organizations",
    _DUE.format(which=_NAMED))  # fmt: skip
_THEIR_ZONES = query("schedule.their_zones", "Select the time zones of organizations",
    _ZONES.format(which=_NAMED))  # fmt: skip
# Advisory lock class 7808: invoices on schedule of one partition's organizations.
_CLAIM = query("schedule.claim", "Lock the schedule of a partition",
    "SELECT pg_try_advisory_xact_lock(7808, :partition)")  # fmt: skip
# Only changed rows, locked in order, since flushes update organizations too.
_LEAVE = query("schedule.leave", "Store why invoicing left organizations out", """
WITH other AS (
    SELECT o.id, n.reason, n.why
      FROM unnest(cast(:organizations AS bigint[]), cast(:reasons AS text[]), cast(:whys AS text[]))
        AS n (id, reason, why) JOIN organization AS o ON o.id = n.id
     WHERE (o.invoicing_left, o.invoicing_left_reason) IS DISTINCT FROM (n.why, n.reason)
     ORDER BY o.id FOR NO KEY UPDATE OF o
)
UPDATE organization AS o SET invoicing_left = n.why, invoicing_left_reason = n.reason
  FROM other AS n WHERE o.id = n.id""")  # fmt: skip
_LEFT = query("schedule.left", "Select organizations that invoicing left out",
    "SELECT id FROM organization WHERE invoicing_left IS NOT NULL ORDER BY id LIMIT :count")  # fmt: skip
WHY_CHARACTERS_MAX = 500
# An organization has at most a month and a fee in advance due.
DUE_OF_ONE_MAX = 2


def due(
    connection: Connection, now: datetime, after: int, count: int, grace_hours: int, *, finalize: bool
) -> Sequence[Any]:
    """Return up to `count` due invoices, of months or of fees in advance, beyond the organization `after`.

    With `finalize`, drafts whose grace period is over are included.
    """
    here = {"after": after, "count": count, "finalize": finalize}
    zones = connection.execute(_NEXT_ZONES, {"after": after}).scalars()
    rows = connection.execute(_NEXT, _at(now, grace_hours, zones) | here).all()
    # All rows of an organization belong to one page.
    last = rows[-1].organization_id if len(rows) == count else None
    whole = [row for row in rows if row.organization_id != last]
    return whole or rows


def due_of(
    connection: Connection,
    now: datetime,
    organization_ids: Sequence[int],
    grace_hours: int,
    *,
    finalize: bool,
) -> Sequence[Any]:
    """Return the invoices of these organizations that are due now."""
    ids = list(organization_ids)
    here = {"organizations": ids, "count": DUE_OF_ONE_MAX * len(ids), "finalize": finalize}
    zones = connection.execute(_THEIR_ZONES, {"organizations": ids}).scalars()
    return connection.execute(_THESE, _at(now, grace_hours, zones) | here).all()


def claim(connection: Connection, partition: int) -> bool:
    """Claim a partition's scheduled invoices until the transaction ends; return False if another has it."""
    return bool(connection.execute(_CLAIM, {"partition": partition}).scalar_one())


def leave(connection: Connection, left: Mapping[int, SkipReason | None]) -> None:
    """Store the reasons in `left` why organizations' invoices were skipped; None clears a stored reason."""
    ids = sorted(left)
    pairs = [(None, None) if (why := left[id_]) is None else (why.reason, why.why) for id_ in ids]
    reasons = [reason for reason, _ in pairs]
    whys = [None if why is None else why[:WHY_CHARACTERS_MAX] for _, why in pairs]
    connection.execute(_LEAVE, {"organizations": ids, "reasons": reasons, "whys": whys})


def skipped_organizations(connection: Connection, count: int) -> list[int]:
    """Return up to `count` ids of organizations whose invoices were skipped."""
    return list(connection.execute(_LEFT, {"count": count}).scalars())


def _at(now: datetime, grace_hours: int, zones: Iterable[str]) -> dict[str, Any]:
    """Return what the queries of due invoices ask for, with the months of these zones."""
    months = last_months(zones, now)
    return {
        "now": now, "today": now.astimezone(UTC).date(), "grace": grace_hours,
        "zones": [month.zone for month in months], "untils": [month.until for month in months],
        "overs": [month.over for month in months],
    }  # fmt: skip


# Invoices of months and fees in advance for many organizations in one transaction, each as if alone.
#
# A query costs the same for one organization and for many, so each reads a batch. Numbers are assigned last,
# as others wait for them until the commit.

_NEW = query("schedule.new", "Add drafts of a period", """
INSERT INTO invoice (organization_id, period_start, period_end, currency)
SELECT id, :start, :until, currency FROM organization
 WHERE id = ANY(cast(:organizations AS bigint[])) AND deleted_at IS NULL ORDER BY id
RETURNING id, organization_id""")  # fmt: skip
_NEW_AHEAD = query("schedule.new_ahead", "Add drafts of fees in advance", """
INSERT INTO invoice (organization_id, period_start, period_end, currency, source)
SELECT o.id, n.start, n.until, o.currency, :source
  FROM unnest(cast(:organizations AS bigint[]), cast(:starts AS date[]), cast(:ends AS date[]))
    AS n (id, start, until) JOIN organization AS o ON o.id = n.id
 WHERE o.deleted_at IS NULL ORDER BY o.id
RETURNING id, organization_id, period_start, period_end""")  # fmt: skip
_REMOVE = query("schedule.remove", "Delete drafts",
    "DELETE FROM invoice WHERE id = ANY(cast(:ids AS bigint[]))")  # fmt: skip

# The source whose charges in advance get an invoice of their own.
AHEAD = ChargeSelection("subscription_segment", None)

# The first day, the day after the last one, and whether the invoice becomes final.
Month = tuple[date, date, bool]


@dataclass(slots=True)
class InvoiceBatch:
    """Organizations whose invoices are made in one transaction; `make_scheduled` fills `left` and `busy`.

    `change_of` returns the keeper's write for a verb and an invoice id.
    """

    connection: Connection
    now: datetime
    grace_hours: int
    finalize: bool
    letterhead: Letterhead
    partition_of: Callable[[int], int]
    change_of: Callable[[str, int], EntityWrite]
    left: dict[int, SkipReason] = field(default_factory=dict)
    # Organizations that another transaction has locked.
    busy: Collection[int] = ()
    # Texts with letters that must be checked against the fonts first.
    unseen: list[str] = field(default_factory=list)


def make_scheduled(batch: InvoiceBatch, organization_ids: Sequence[int], *, wait: bool = False) -> None:
    """Make the due invoices of these organizations, without those that another transaction has locked.

    With `wait`, wait for their locks. Raise `UnseenLetters`, with the texts of all invoices, if it is not
    known yet whether the fonts have their letters.
    """
    if wait:
        for organization_id in sorted(organization_ids):
            charges.hold(batch.connection, organization_id)
    held = organization_ids if wait else charges.hold_free(batch.connection, organization_ids)
    batch.busy = set(organization_ids) - set(held)
    due = due_of(batch.connection, batch.now, held, batch.grace_hours, finalize=batch.finalize)
    final = {batch.partition_of(row.organization_id) for row in due if row.ripe and batch.finalize}
    for partition in sorted(final):
        hold_flushes(batch.connection, partition)
    months = _months(batch, [row for row in due if row.source is None])
    made = invoice_build.have_draft(batch.connection, months)
    # Only for charges that no month has taken.
    fees = _fees(batch, [row for row in due if row.source and row.organization_id not in batch.left])
    made += invoice_build.have_draft(batch.connection, fees)
    if batch.unseen:
        raise UnseenLetters(batch.unseen)
    if made:
        _finish(batch, [*months, *fees], made)


def _months(batch: InvoiceBatch, due: Sequence[Any]) -> list[DraftWithLines]:
    """Make drafts of the monthly invoices that are due; return those that may become final."""
    months = defaultdict[Month, list[Any]](list)
    for row in due:
        months[row.period_start, row.period_end, bool(row.ripe and batch.finalize)].append(row)
    finals: list[DraftWithLines] = []
    for (start, until, final), rows in sorted(months.items(), key=lambda month: month[0]):
        finals += _drawn(batch, _drafts(batch, start, until, rows), rows, final=final)
    return finals


def _fees(batch: InvoiceBatch, due: Sequence[Any]) -> list[DraftWithLines]:
    """Draft the invoices of fees in advance, grouped by their last day; return those that become final."""
    drafts = defaultdict[date, list[Draft]](list)
    for row in due:
        if row.draft_id is not None:
            draft = Draft(row.draft_id, row.organization_id, row.period_start, row.period_end, AHEAD)
            drafts[draft.until].append(draft)
    for draft in _new_fees(batch, [row.organization_id for row in due if row.draft_id is None]):
        drafts[draft.until].append(draft)
    finals: list[DraftWithLines] = []
    for _, some in sorted(drafts.items()):
        some.sort(key=lambda draft: draft.organization_id)
        finals += _drawn(batch, some, due, final=batch.finalize)
    return finals


def _new_fees(batch: InvoiceBatch, organization_ids: Sequence[int]) -> list[Draft]:
    """Create drafts for those of these organizations that now owe a fee in advance.

    Those that are due for a fee and have nothing to bill are added to `batch.left`.
    """
    if not organization_ids:
        return []
    today = _today(batch)
    charges = invoice_build.of_source(batch.connection, organization_ids, today + ONE_DAY, today, AHEAD)
    owed = {owner: split.taken for owner, split in charges.items() if split.taken}
    _skip_unowed_fees(batch, [owner for owner in organization_ids if owner not in owed])
    days = {owner: invoice_build.days_of(some) for owner, some in owed.items()}
    made = batch.connection.execute(_NEW_AHEAD, {
        "organizations": list(days), "starts": [start for start, _ in days.values()],
        "ends": [until for _, until in days.values()], "source": AHEAD.source,
    })  # fmt: skip
    return [Draft(row.id, row.organization_id, row.period_start, row.period_end, AHEAD) for row in made]


def _skip_unowed_fees(batch: InvoiceBatch, organization_ids: Sequence[int]) -> None:
    """Add to `batch.left` those of these organizations that are due for a fee in advance, as owing nothing."""
    if not organization_ids:
        return
    rows = due_of(batch.connection, batch.now, organization_ids, batch.grace_hours, finalize=False)
    due = [row.organization_id for row in rows if row.source]
    batch.left |= dict.fromkeys(due, SkipReason(CONFLICT, NOTHING_OWED))


def _drawn(
    batch: InvoiceBatch, drafts: Sequence[Draft], rows: Sequence[Any], *, final: bool
) -> list[DraftWithLines]:
    """Store the lines of these drafts; return the drafts that may become final (none unless `final`)."""
    if not drafts:
        return []
    here = (batch.connection, batch.letterhead, _today(batch), drafts)
    if final:
        return _complete(batch, invoice_build.take_charges(*here), rows)
    _note(batch, "create", _keep_with_lines(batch, invoice_build.draw_draft(*here), set()))
    return []


def _today(batch: InvoiceBatch) -> date:
    return batch.now.astimezone(UTC).date()


def _drafts(batch: InvoiceBatch, start: date, until: date, rows: Sequence[Any]) -> list[Draft]:
    """Return the drafts for a month: existing ones, and new ones for organizations that have none.

    An organization with another draft for these days is marked as skipped.
    """
    drafts = [Draft(row.draft_id, row.organization_id, start, until) for row in rows if row.draft_id]
    new = [row.organization_id for row in rows if row.draft_id is None]
    if new:
        other = overlapping(batch.connection, new, start, until)
        batch.left |= {organization_id: SkipReason(CONFLICT, why) for organization_id, why in other.items()}
        free = [organization_id for organization_id in new if organization_id not in other]
        made = batch.connection.execute(_NEW, {"start": start, "until": until, "organizations": free})
        drafts += [Draft(row.id, row.organization_id, start, until) for row in made]
    return sorted(drafts, key=lambda draft: draft.organization_id)


def _keep_with_lines(
    batch: InvoiceBatch, drawn: Sequence[DraftWithLines], known: Collection[int]
) -> list[DraftWithLines]:
    """Return the drafts that have lines; delete the others, with an audit entry for each id in `known`."""
    empty = [draft for draft in drawn if not draft.bill.lines]
    # Charges that no invoice can take are reported as the skip reason.
    batch.left |= {
        draft.draft.organization_id: SkipReason(REFUSED, draft.left) for draft in empty if draft.left
    }
    if empty:
        batch.connection.execute(_REMOVE, {"ids": [draft.draft.invoice_id for draft in empty]})
        _note(batch, "delete", [draft for draft in empty if draft.draft.invoice_id in known])
    return [draft for draft in drawn if draft.bill.lines]


def _complete(
    batch: InvoiceBatch, drawn: Sequence[DraftWithLines], rows: Sequence[Any]
) -> list[DraftWithLines]:
    """Return the drafts that may become final, and store why the others are skipped."""
    final, known, today = [], {row.draft_id for row in rows}, _today(batch)
    rates = read_rates(batch.connection, batch.letterhead, today)
    for draft in _keep_with_lines(batch, drawn, known):
        try:
            complete = invoice_build.require_final(batch.connection, batch.letterhead, today, rates, draft)
        except Unprocessable as refusal:
            batch.left[draft.draft.organization_id] = left_by(refusal)
        except UnseenLetters as more:
            batch.unseen += more.texts
        else:
            final.append(complete)
    _note(batch, "create", [draft for draft in final if draft.draft.invoice_id not in known])
    return final


def _finish(batch: InvoiceBatch, finals: Sequence[DraftWithLines], made: Sequence[Final]) -> None:
    """Assign numbers to the final invoices, as the last step, since it blocks other transactions.

    Then give the credits of invoices with nothing to pay, and apply unused credit.
    """
    _note(batch, "finalize", finals)
    statuses = invoice_build.finish_final(batch.connection, batch.letterhead, batch.now, made)
    for final, status in zip(finals, statuses, strict=True):
        if status in {None, PAID} and invoice_build.owes_credits(final):
            change = batch.change_of("finalize", final.draft.invoice_id)
            credit_grants.give_credits(change, change.fetch())
    with_credit = set(
        payments.open_credit_owners(batch.connection, [final.draft.organization_id for final in finals])
    )
    for final in finals:
        if final.draft.organization_id in with_credit:
            change = replace(batch.change_of("finalize", final.draft.invoice_id), now=batch.now)
            payments.apply_open(change, final.draft.organization_id, past_due=False)


def _note(batch: InvoiceBatch, action: str, drawn: Sequence[DraftWithLines]) -> None:
    audit.record_all_audit(
        batch.change_of(action, 0),
        [
            (
                draft.draft.invoice_id, draft.draft.organization_id,
                {"period_start": draft.draft.start, "period_end": draft.draft.until},
            )
            for draft in drawn
        ],
    )  # fmt: skip
