"""From a body to a call: read into a document, decided on, and sent written again.

What is decided here, such as `stream_options.include_usage` or a maximum, is a field of the document.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.blobs import MEDIA_BYTES_MIN, media_in
from gateway.core.calls.call import DEFAULT_BOUNDS, Bounds, Call
from gateway.core.calls.document import check_names, read_document, write_document
from gateway.core.calls.route import Route
from gateway.core.families import controlled
from gateway.core.families.controlled import Document, elements, flag, inner, models_beside
from gateway.core.families.registry import SHAPES
from gateway.core.names import names_in

# Lists whose objects are priced and held one by one.
_ELEMENTS = ("tools", "plugins")
_NOT_ASCII = bytes(range(128, 256))
# Without any of these in a body nobody has to look for media at their places.
_MEDIA_MARKS = (b";base64,", b'"data":"', b'"result":"')


def read_call(
    route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds = DEFAULT_BOUNDS
) -> Call:
    """Understand `body` as `route.meter` says; `InvalidRequest` names the field that is wrong.

    The meters `generic` and `none` read no body: theirs may be of any type and streamed.
    """
    shape = SHAPES.get(route.meter)
    if shape is None:
        return Call(route.meter, route.family, body, units_pointer=route.units_pointer)
    document = read_document(body)
    call = Call(route.meter, route.family, b"", document=document)
    call.reports = route.usage == "always" or (not route.usage and shape.always_reports)
    shape.read(call, document, path_params, bounds)
    for name in _ELEMENTS:
        elements(document, name)
    call.models_beside = models_beside(document)
    call.gives_up = "timeout" in " ".join(document).lower()
    added = _ask_for_usage(call, document) if call.streamed and shape.asks_for_usage else 0
    written = call.body = write_document(document)
    check_names(body, written, added)
    call.names = names_in(document)
    call.input_bytes = len(written)
    if not written.isascii():
        call.rare_bytes = len(written) - len(written.translate(None, _NOT_ASCII))
    if len(written) > MEDIA_BYTES_MIN and any(mark in written for mark in _MEDIA_MARKS):
        media = media_in(document, shape.media)
        call.input_bytes -= media.size
        call.blob_tokens, call.unsure_bytes = media.tokens, media.unsure
    return call


def limit_output(call: Call, tokens: int) -> None:
    """Write a maximum of one choice, in tokens, into a call that states none and produces some.

    A maximum of 0 is written as 1, which it counts as.
    """
    shape = SHAPES.get(call.meter)
    document = call.document
    if document is None or shape is None or not shape.maximum:
        return
    place = document if shape.place is None else shape.place(document)
    if call.output_max is None:
        place[shape.maximum] = call.output_max = tokens
        call.changed = True
    for name in shape.numbers:
        if place.get(name) == 0 and name != shape.uses:
            place[name] = 1
            call.changed = True


def _ask_for_usage(call: Call, document: Document) -> int:
    """Set `stream_options.include_usage` unless the client did itself; how many members that adds."""
    options = inner(document, "stream_options", controlled.STREAM_OPTIONS)
    if options is None:
        added = 1 if "stream_options" in document else 2
        options = document["stream_options"] = {}
    elif flag(options, "include_usage", "stream_options."):
        return 0
    else:
        added = 0 if "include_usage" in options else 1
    options["include_usage"] = call.strip_usage = True
    return added
