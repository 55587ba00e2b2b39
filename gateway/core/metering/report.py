"""The documented shape of a report of use, whichever API's."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """What a documented shape of a report is made from: every field may be missing.

    A field of any type is documented, and nothing is counted by it.
    """
