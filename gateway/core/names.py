"""What the names of a written body end like: each is looked at once, for all who ask.

Names decide where an id may stand, and where an image or a file does. A body is written without blanks, so a
name is what stands in front of `":`. A text may have such a place as well: it counts as a name.
"""

from __future__ import annotations

from typing import Final

COLONS_MAX: Final = 4_096  # a body of more may name anything: no more is looked at
_QUOTE: Final = ord('"')
_D, _I, _L, _S, _UNDERSCORE = ord("d"), ord("i"), ord("l"), ord("s"), ord("_")
_CASE: Final = ord("a") ^ ord("A")
# An image or a file named by its address, or by the id it was stored under.
_FILES: Final = (b'url"', b'ri"', b'file_id"')


class Names:
    """`ids` says that a name ends like an id's, in any case: `…_id`, `…_ids` or `id`; `files` counts names
    of images and files that are not in the body.
    """

    __slots__ = ("files", "ids")

    def __init__(self, ids: bool = False, files: int = 0) -> None:
        self.ids, self.files = ids, files


NO_NAMES: Final = Names()


def names_in(written: bytes) -> Names:
    """What the names of a body end like, which is written as `write_document` does."""
    parts = written.split(b":", COLONS_MAX)
    behind = parts.pop()
    if len(parts) == COLONS_MAX:
        return Names(True, sum([written.count(name + b':"') for name in _FILES]))
    ids, files = False, 0
    for part in reversed(parts):
        last = len(part) - 2
        if last > 0 and part[last + 1] == _QUOTE:
            ids = ids or _is_id(part, last)
            is_text = len(behind) > 0 and behind[0] == _QUOTE
            if is_text and part[last] in (_L, _I, _D) and part.endswith(_FILES):
                files += 1
        behind = part
    return Names(ids, files)


def _is_id(part: bytes, last: int) -> bool:
    """Whether a name that ends here ends like an id's."""
    several = part[last] | _CASE == _S
    if several:
        last -= 1
    if last < 2 or part[last] | _CASE != _D or part[last - 1] | _CASE != _I:
        return False
    before = part[last - 2]
    return before == _UNDERSCORE or (before == _QUOTE and not several)
