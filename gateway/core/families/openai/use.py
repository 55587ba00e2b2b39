"""What a report of use of OpenAI's APIs is made of, noted beside what is charged."""

from __future__ import annotations

from gateway.core.families.openai.shapes import InputDetails, OutputDetails
from gateway.core.metering.detail import Detail


def any_count(read: int | None, written: int | None) -> bool:
    """Whether either of these is a number of tokens."""
    return (read is not None and read >= 0) or (written is not None and written >= 0)


def note_parts(detail: Detail, read: InputDetails | None, written: OutputDetails | None) -> tuple[int, int]:
    """Note what tokens are made of, as far as a report says; those cached, and those of reasoning."""
    cached = reasoning = 0
    if read is not None:
        cached, written_in_all = read.cached_tokens or 0, read.cache_write_tokens or 0
        if read.cache_write_tokens_details is not None:
            detail.cache_write_1h = read.cache_write_tokens_details.ttl_12h_tokens or 0
        detail.cache_write = written_in_all - detail.cache_write_1h
        detail.audio_input, detail.image_input = read.audio_tokens or 0, read.image_tokens or 0
    if written is not None:
        reasoning = written.reasoning_tokens or 0
        detail.audio_output, detail.image_output = written.audio_tokens or 0, written.image_tokens or 0
    return cached, reasoning


def note_tools(detail: Detail, uses: dict[str, int] | None, raw: bytes) -> None:
    """Note uses of a provider's tools, by names such as `web_search_requests` and `x_search_calls`."""
    if not uses:
        return
    for name, times in uses.items():
        if not detail.used_tool(name.removesuffix("_requests").removesuffix("_calls"), times):
            detail.keep(raw)
