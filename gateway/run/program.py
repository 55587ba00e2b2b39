"""What this very process is, as others see it in the list of programs."""

from __future__ import annotations

import socket
import time
from importlib.metadata import version
from typing import Literal
from uuid import uuid4

from gateway.core.layout import LAYOUT
from gateway.core.programs import Program
from gateway.counters.keeper.programs import HOST_CHARS_MAX


def this_program(role: Literal["gateway", "keeper"], schema: str = "") -> Program:
    """A process that begins now."""
    host = socket.gethostname()[:HOST_CHARS_MAX]
    return Program(str(uuid4()), role, version("tollkeeper"), LAYOUT, host, round(time.time(), 3), schema)
