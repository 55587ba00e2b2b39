"""Letters that no font shows are looked for once, all of a document at once, and remembered within bounds."""

from __future__ import annotations

from persistence.font_coverage import FontCoverage


async def test_each_text_is_told_its_own_letters() -> None:
    asked: list[str] = []

    def missing(text: str) -> str:
        asked.append(text)
        return "东京"

    glyphs = FontCoverage(missing)
    await glyphs.look(["京 京都", "Жук", "京 京都"])
    assert (asked, glyphs.known) == (["京 京都 Жук"], {"京 京都": "京", "Жук": ""})


async def test_the_oldest_are_forgotten_and_those_that_were_asked_for_are_not() -> None:
    glyphs = FontCoverage(lambda _: "", known_max=3)
    await glyphs.look(["a", "b"])
    await glyphs.look(["c", "d"])
    assert list(glyphs.known) == ["b", "c", "d"]
    await glyphs.look(["e", "f", "g", "h"])
    assert list(glyphs.known) == ["e", "f", "g", "h"]
