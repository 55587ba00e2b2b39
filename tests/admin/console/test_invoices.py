"""Invoices in the console: states, due date, payments and history with links; and who owes what."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.test_invoices import acme, draft


def history(text: str) -> list[str]:
    """What the page says happened, in order, as it reads."""
    found = re.search(r'<ol class="history">(.*?)</ol>', text, re.DOTALL)
    assert found
    items = re.findall(r"<li>.*?</time>(.*?)</li>", found[1], re.DOTALL)
    return [" ".join(unescape(re.sub("<[^>]+>", " ", item)).split()) for item in items]


async def test_an_invoice_tells_what_became_of_it(api: Api, admin: Person) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    one = f"/invoices/{made['id']}"
    assert history((await admin.open(one)).text) == ["Drafted draft"]
    done = (await api.post(f"invoices/{made['id']}/finalize")).json
    assert (await admin.fill(one, f"{one}/payments", amount="9.60", reference="bank-1")).status == 303
    [payment] = (await api.get(f"payments?invoice_id={made['id']}")).json["items"]
    asked = {"lines": [{"position": 1, "amount": "10.00"}]}
    note = (await api.post(f"invoices/{made['id']}/credit-note", asked)).json
    noted = (await api.post(f"invoices/{note['id']}/finalize")).json
    page = await admin.open(one)
    assert f"due {done['due_date']}" in page.text
    assert history(page.text) == [
        "Drafted draft",
        f"Final as {done['number']}, due on {done['due_date']} finalized",
        "Paid: $9.60, bank-1",
        f"Credit note {noted['number']}: −$12.00 finalized",
        "Credit applied: $12.00 own",
    ]
    assert f'href="/payments/{payment["id"]}"' in page.text
    assert f'href="/invoices/{note["id"]}"' in page.text
    said = history((await admin.open(f"/invoices/{note['id']}")).text)
    assert said[0] == f"Drafted, of invoice {done['number']} draft"


async def test_an_invoice_tells_what_stripe_has_of_it(api: Api, admin: Person) -> None:
    ids = await acme(api, stripe_customer="cus_1")
    made = await draft(api, ids)
    await api.post(f"invoices/{made['id']}/finalize")
    one = f"/invoices/{made['id']}"
    assert history((await admin.open(one)).text)[-1] == "For Stripe: invoice waiting"
    [(row,)] = api.rows(
        "update handover set state = 'failed', attempts = 1, error = 'No such customer' returning id"
    )
    page = (await admin.open(f"/handovers/{row}")).text
    assert "No such customer" in page
    assert (await admin.fill(f"/handovers/{row}", f"/handovers/{row}/retry")).status == 303
    api.rows("update handover set state = 'done', remote = 'in_1', done_at = now() + interval '1 minute'")
    page = (await admin.open(one)).text
    assert history(page)[-1] == "Stripe has in_1: invoice done"
    assert f'href="/handovers/{row}"' in page
    assert f"/handovers/{row}/retry" not in (await admin.open(f"/handovers/{row}")).text


async def test_what_nothing_takes_back_is_ticked_first(api: Api, admin: Person, reader: Person) -> None:
    made = await draft(api, await acme(api))
    one = f"/invoices/{made['id']}"

    def ticked(text: str, action: str) -> bool:
        form = re.search(rf'<form method="post" action="{one}/{action}".*?</form>', text, re.DOTALL)
        return form is not None and 'name="confirmed" value="yes" required' in form[0]

    page = (await admin.open(one)).text
    assert (ticked(page, "finalize"), ticked(page, "recompute")) == (True, False)
    await api.post(f"invoices/{made['id']}/finalize")
    page = (await admin.open(one)).text
    assert all(ticked(page, action) for action in ("void", "payments", "uncollectible"))
    assert not any(ticked(page, action) for action in ("apply", "refund"))
    await api.post(f"invoices/{made['id']}/payments", {"amount": "9.60", "reference": "bank"})
    note = (await api.post(f"invoices/{made['id']}/credit-note")).json["id"]
    await api.post(f"invoices/{note}/finalize")
    of_note = (await admin.open(f"/invoices/{note}")).text
    for action in ("apply", "refund"):
        assert f'action="/invoices/{note}/{action}"' in of_note
    assert ("Open credit" in of_note, history(of_note)[-1]) == (True, "Credit applied: $60.00 own")
    assert history((await admin.open(one)).text)[-1] == "Credit applied: $60.00 own"
    assert "<form" not in (await reader.open(one)).text.split("<main")[1]


async def test_who_owes_what_since_when(api: Api, admin: Person, reader: Person) -> None:
    assert "Nobody has anything to pay." in (await admin.open("/receivables")).text
    ids = await acme(api)
    made = await draft(api, ids)
    await api.post(f"invoices/{made['id']}/finalize")
    page = await reader.open("/receivables")
    assert page.status == 200
    assert f'href="/organizations/{ids["organization"]}"' in page.text
    assert "$69.60" in page.text
    assert 'href="/receivables" aria-current="page"' in page.text
    late = datetime.now(UTC).date() + timedelta(days=14 + 31)
    aged = (await admin.open(f"/receivables?at={late}")).text
    cell = re.search(r'data-label="31–60 days">(.*?)</td>', aged, re.DOTALL)
    assert cell is not None
    assert "$69.60" in cell[1]
    assert (await admin.open("/receivables?at=yesterday")).status == 422
    assert "All that was charged is billed." in (await admin.open("/unbilled")).text
    account = (await reader.open(f"/balances?organization_id={ids['organization']}")).text
    for shown in ("Open credit", "$69.60", f'href="/invoices/{made["id"]}"', "Applied credit", "Payments"):
        assert shown in account
    assert (
        f'href="/balances?organization_id={ids["organization"]}"'
        in (await admin.open(f"/organizations/{ids['organization']}")).text
    )
    assert (await admin.open("/receivables?colour=red")).status == 422
