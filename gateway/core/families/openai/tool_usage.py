"""Usage that OpenAI's answers report beside `usage`: billable searches, and tokens of the models of image tools.

The types are those of `Response.tool_usage`, `ImageGenerationCall.svg_usage` and `ImagesResponse.svg_usage` in
openai 3.51.0. No number here is in `usage`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.core.billing.price_book import SEARCH, Counts
from gateway.core.families.openai.shapes import InputDetails, OutputDetails
from gateway.core.metering.meter import Detail, Meter
from gateway.core.metering.reading import UNREADABLE, Reports, is_there
from gateway.core.metering.report import UsageShape

# Tokens of other models, each with the name of its model.
Parts = list[tuple[str, Counts]]

IMAGE_TOOL: Final = "image_generation"
# The tool's model where nobody names one (openai 3.51.0, `ImageGeneration.model`).
_IMAGE_MODEL: Final = "gpt-image-2.6-sunburst"


class _Cached(UsageShape):
    cached_image_tokens: int | None = None
    cached_text_tokens: int | None = None


class _Tokens(UsageShape):
    """The tokens of an image tool, or of the model that writes an SVG, which says its `model`."""

    model: str | None = None
    input_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cached_tokens_details: _Cached | None = None
    reasoning_tokens: int | None = None


class _Searches(UsageShape):
    num_requests: int | None = None


class _ToolUsage(UsageShape):
    image_gen: _Tokens | None = None
    web_search: _Searches | None = None


class _Drawn(msgspec.Struct):
    """An output item, or a tool, that may be about images."""

    type: object = None
    model: object = None
    svg_usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_TOOLS, _SVG = Reports(_ToolUsage), Reports(_Tokens)
_drawn = msgspec.json.Decoder(_Drawn).decode


def note_tool_usage(
    meter: Meter, raw: bytes, output: Iterable[msgspec.Raw], tools: Iterable[msgspec.Raw]
) -> Parts:
    """Note the billable searches in `tool_usage` (`raw`, which may be empty), and return tokens of other models.

    Its numbers take the place of the uses that were counted from `output`. `tools` are those of the response.
    """
    told = _TOOLS.read(meter, raw) if raw else None
    parts = [part for item in output for part in svg_part(meter, _read(bytes(item)).svg_usage)]
    if told is None:
        return parts
    if told.web_search is not None and (told.web_search.num_requests or 0) >= 0:
        _bill(meter.detail, SEARCH, told.web_search.num_requests or 0)
    counts = None if told.image_gen is None else _counts(told.image_gen)
    if counts is not None and any(counts):
        _bill(meter.detail, IMAGE_TOOL, 0)  # paid by its tokens
        parts.append((_image_model([*output, *tools]), counts))
    return parts


def svg_part(meter: Meter, raw: msgspec.Raw | msgspec.UnsetType) -> Parts:
    """Return the tokens of the model that wrote an SVG, from its report `raw`; empty if there is none."""
    told = _SVG.read(meter, bytes(raw)) if is_there(raw) else None
    return [] if told is None else [(told.model or "", _counts(told))]


def _bill(detail: Detail, tool: str, times: int) -> None:
    """Set how often a tool's uses are billed, in place of the uses that were seen."""
    detail.tools.pop(tool, None)
    detail.used_tool(tool, times)


def _counts(told: _Tokens) -> Counts:
    """Return reported tokens by `KINDS`. Output whose kind nobody says is of images, but for that of an SVG."""
    read, total = max(0, told.input_tokens or 0), max(0, told.total_tokens or 0)
    written = max(0, told.output_tokens or 0, total - read)
    reasoning = max(0, told.reasoning_tokens or 0)
    cached = min(max(0, told.cached_tokens or 0), read)
    seen, within = told.input_tokens_details, told.cached_tokens_details
    images = 0 if seen is None else seen.image_tokens or 0
    if seen is not None and within is not None:
        images -= within.cached_image_tokens or 0
    made = told.output_tokens_details
    drawn = written if made is None else made.image_tokens or 0
    if told.model:
        drawn = 0
    return (
        read - cached, cached, 0, 0, written, min(reasoning, written), 0, 0,
        min(max(0, images), read - cached), min(max(0, drawn), written),
    )  # fmt: skip


def _image_model(places: Iterable[msgspec.Raw]) -> str:
    """Return the model of image tools by items of the answer and tools of the call; empty if there are several."""
    drawn = [_read(bytes(place)) for place in places]
    models = {
        item.model for item in drawn
        if isinstance(item.model, str) and str(item.type).removesuffix("_call") == IMAGE_TOOL
    }  # fmt: skip
    return "" if len(models) > 1 else next(iter(models), _IMAGE_MODEL)


def _read(raw: bytes) -> _Drawn:
    try:
        return _drawn(raw)
    except UNREADABLE:
        return _Drawn()
