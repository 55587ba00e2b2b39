"""Calls read from their bodies, which are decoded and checked.

Pure. Values that the gateway sets, such as `stream_options.include_usage` or a maximum, are fields of the document,
which is then written again. A plain body in which nothing is decided is sent as it came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from gateway.core.billing.vector import IMAGES
from gateway.core.calls.call import (
    DEFAULT_BOUNDS,
    UNCOUNTED_BYTES_MAX,
    Body,
    BodyLook,
    CallRequest,
    CallSpec,
    RequestedUnits,
    UsageBounds,
    check_size,
    media_in,
    names_in,
    read_document,
    write_document,
    written_of,
)
from gateway.core.calls.documents import pages_of
from gateway.core.calls.estimate import CONTEXT_MAX
from gateway.core.calls.forms import FormReader, boundary_of
from gateway.core.calls.recordings import lengths_of
from gateway.core.calls.routes import Route
from gateway.core.families import controlled
from gateway.core.families.controlled import (
    BACKGROUND,
    CONTINUES,
    LATER,
    NO_READERS,
    Document,
    elements,
    flag,
    inner,
    models_beside,
    models_of,
    top_names,
)
from gateway.core.families.costs import quotes_in
from gateway.core.families.family import CallKind, SocketMessages
from gateway.core.families.objects import unit_later
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.families.tools import tools_of
from gateway.errors import InvalidRequest


def read_call(
    route: Route,
    path_params: Mapping[str, str],
    body: bytes,
    bounds: UsageBounds = DEFAULT_BOUNDS,
    *,
    reads: bool = False,
    look: BodyLook | None = None,
    form: bytes = b"",
    messages: SocketMessages | None = None,
    document: Document | None = None,
) -> CallRequest:
    """Return a call from its body, as `route.meter` defines it; `InvalidRequest` names a wrong field.

    `messages` turn a WebSocket message into a body. A turn of a live session is a `document` without a body.
    The meters `generic` and `none` decode no body unless `reads` is set, because it may be of any type and
    streamed. `look` are known facts about the body, and `form` is the content type of a form.
    """
    shape = SHAPES.get(route.meter)
    if shape is None:
        parts = Body(body)
        if reads and body:
            look = look or BodyLook(body)
            document = read_document(body, look)
            parts = Body(
                written_of(document, body, look), document,
                names=look.names if look.plain else names_in(document), tools=elements(document, "tools"),
                plugins=elements(document, "plugins"),
            )  # fmt: skip
        return CallRequest(route.meter, route.family, parts, units_pointer=route.units_pointer)
    if form and shape.form is not None:
        reader = FormReader(shape.form, boundary_of(form))
        reader.feed(body)
        reader.end()
        return read_form(route, path_params, body, reader, bounds)
    if shape.of_tools and body.lstrip()[:1] == b"[":
        raise InvalidRequest("A batch is not taken: send each message by itself.")
    look = look or BodyLook(body)
    cut = look.cut if shape.skips_texts and messages is None else None
    if document is None:
        document = read_document(body if cut is None else cut.rest, look)
    if messages is not None:
        body, look = _asked_by(messages, document, body, look)
    parts = Body(document=document, cut=cut)
    if shape.of_tools:
        spec = shape.read(parts, document, path_params, bounds)
        parts.content, tool = written_of(document, body, look), spec.mcp.tool
        if not look.plain:
            names_in(document)  # refuses what is nested too deep
        model = f"{route.upstream}/{tool}" if tool else ""
        spec = spec._replace(model=model, mcp=spec.mcp._replace(server=route.upstream))
        return CallRequest(route.meter, route.family, parts, spec, spec.output_max)
    call = _understand(route, shape, parts, document, path_params, bounds)
    if call.spec.streamed and shape.asks_for_usage and (added := ask_for_usage(document)) is not None:
        call.strip_usage = True
        parts.encode(document, body, look, added)
    else:
        parts.encode(document, body, look)
    call.input_bytes = len(parts.content)
    if call.body.names.media or call.body.names.files:
        media = media_in(document, shape.media)
        call.input_bytes -= media.size
        call.media = replace(media, text_beyond=call.media.text_beyond)
        call.body.names.files -= media.named
        call.body.names.files -= quotes_in(document) if call.body.names.files > 0 else 0
    if call.body.names.tools:
        find_tools(call, document)
    return call


def find_tools(call: CallRequest, document: Document) -> None:
    """Set the tools of a call, those in messages, parts and groups too, and the models that tools name."""
    call.body.tools = tools_of(document)
    models = [model for tool in call.body.tools for model in models_of(tool, "tools")]
    call.models_beside = tuple(dict.fromkeys((*call.models_beside, *models)))
    call.asks = call.asks or bool(call.body.tools)


def measure_media(*calls: CallRequest) -> None:
    """Count the pages of documents and the seconds of recordings in calls.

    This may take a second, so not on the event loop.
    """
    pages = pages_of([text for call in calls for text in call.media.documents])
    lengths = lengths_of([recording.data for call in calls for recording in call.media.recordings])
    for call in [call for call in calls if call.unmeasured]:
        documents, recordings, shape = call.media.documents, call.media.recordings, SHAPES[call.meter]
        numbers = [next(pages) for _ in documents]
        count, endless = sum(number or 0 for number in numbers), numbers.count(None)
        seconds = video_seconds = 0
        for recording in recordings:
            length = next(lengths)
            if shape.hear is not None:
                call.spec = shape.hear(call.body, call.spec._replace(media=call.media), length)
                call.media = call.spec.media
            elif length is None or recording.endless:
                endless += 1
            else:
                seconds += math.ceil(length.seconds)
                video_seconds += math.ceil(length.seconds) if recording.is_video else 0
        media, places = call.media, shape.media
        of_documents = max(media.document_tokens, count * places.page)
        tokens = min(seconds * places.second + video_seconds * places.frame, CONTEXT_MAX)
        of_recordings = max(media.recording_tokens, tokens)
        more = of_recordings - media.recording_tokens
        call.media = replace(
            media, documents=(), recordings=(), pages=count, seconds=seconds, video_seconds=video_seconds,
            endless=media.endless + endless, tokens=media.tokens + of_documents - media.document_tokens + more,
            document_tokens=of_documents, recording_tokens=of_recordings, heard=media.heard + more,
        )  # fmt: skip


def ask_for_usage(document: Document) -> int | None:
    """Request a report of usage in the stream; return the number of added fields, None if the client does."""
    options = inner(document, "stream_options", controlled.STREAM_OPTIONS)
    if options is None:
        added = 1 if "stream_options" in document else 2
        document["stream_options"] = {"include_usage": True}
        return added
    if flag(options, "include_usage", "stream_options."):
        return None
    added = 0 if "include_usage" in options else 1
    options["include_usage"] = True
    return added


def read_form(
    route: Route, path_params: Mapping[str, str], body: bytes, form: FormReader, bounds: UsageBounds
) -> CallRequest:
    """Return a call from a form: its text fields are the document, and its body is sent unchanged."""
    shape, document = SHAPES[route.meter], form.fields
    parts = Body(body, document, files=form.files, model_at=form.model_at)
    call = _understand(route, shape, parts, document, path_params, bounds)
    call.input_bytes, parts.names = form.texts_bytes, names_in(document)
    return call


def _understand(  # noqa: PLR0917  # how a call is read, and what it says
    route: Route, shape: CallKind, body: Body, document: Document, path_params: Mapping[str, str],
    bounds: UsageBounds,
) -> CallRequest:  # fmt: skip
    """Return a call by its decoded body, as the reader of its API and the fields of all APIs define it."""
    spec = shape.read(body, document, path_params, bounds)
    if shape.stores and not (shape.lasts or spec.units.likely):
        unit = unit_later(route.family, route.path)
        spec = spec._replace(units=RequestedUnits({unit: 1} if unit else None))
    # Each tool and plugin is priced and held by itself.
    body.tools, body.plugins = elements(document, "tools"), elements(document, "plugins")
    names = top_names(document)
    family = OF_METER.get(route.meter)
    beside = models_beside(document, names, NO_READERS if family is None else family.model_lists)
    if names.continues:
        token = " ".join([str(document[name]) for name in CONTINUES if document.get(name)])
        spec = spec._replace(continues=token)
    if names.later:
        _refuse_later(spec, document)
    tiers: tuple[str, ...] = ()
    if family is not None and not document.keys().isdisjoint(family.exclusions.tier_fields):
        tiers = family.exclusions.asked_tiers(document)
    return CallRequest(
        route.meter, route.family, body, spec, spec.output_max, models_beside=beside,
        reports=spec.reports or route.usage == "always" or (not route.usage and shape.always_reports),
        gives_up=names.times_out, asks=names.asks, output_default=shape.output_default, tiers=tiers,
        storage=spec.units.storage, media=spec.media,
    )  # fmt: skip


def _refuse_later(spec: CallSpec, document: Document) -> None:
    """Raise `InvalidRequest` if a call asks for an answer later, and is no job.

    A `background` that is a text is that of a picture, where the call is for pictures.
    """
    for name in LATER:
        value = document.get(name)
        draws = isinstance(value, str) and any(unit.startswith(IMAGES) for unit in spec.units.likely or ())
        known = name == BACKGROUND and (spec.background or draws)
        if value not in (None, False) and not known:
            raise InvalidRequest(f"{name} is not accepted: no job here is charged later for it.", param=name)


def _asked_by(
    messages: SocketMessages, document: Document, body: bytes, look: BodyLook
) -> tuple[bytes, BodyLook]:
    """Turn a WebSocket message into the `document` of a call; return the document's JSON, and facts about it."""
    written_of(document, body, look)
    messages.read(document)
    written = write_document(document)
    look = BodyLook(written)
    if not look.plain and len(written) > UNCOUNTED_BYTES_MAX:
        check_size(written)
    return written, look
