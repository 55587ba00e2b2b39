"""The page of running programs: who is too old stands first, and nothing that a host says is markup."""

from __future__ import annotations

from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.test_programs import NEW, OLD


async def test_who_is_too_old_stands_first(api: Api, reader: Person) -> None:
    api.counters.running = [NEW, OLD]
    page = (await reader.open("/programs")).text
    assert page.index("&lt;b&gt;old&lt;/b&gt;") < page.index("<code>new</code>")
    assert str(OLD["refused"]) in page
    assert '>Too old to serve</p><p class="figure number">1<' in page


async def test_the_page_says_where_nobody_knows(api: Api, reader: Person) -> None:
    api.counters.away = True
    assert (await reader.open("/programs")).status == 503
