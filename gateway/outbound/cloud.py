"""Credentials of upstreams in clouds: made and renewed ahead of calls, and how a request is signed by them.

A library of the cloud's own finds them: in a file, in the environment, or from the machine. That may wait, so
`renew` runs in a thread of its own, and no call waits for it. To sign a request nothing is asked of anybody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from math import ceil
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.core.calls.routes import AWS_FIELDS, UpstreamTarget
from gateway.errors import MissingExtra, UpstreamSignedOut, UpstreamUnreachable
from gateway.extras import loading

# How often a worker looks whether anything is due, and how long before its end a credential is renewed.
LOOK_S: Final = 1.0
AHEAD_S: Final = 600.0
# After a failure it is tried again; a credential without an end is read again, since its file may be another.
AGAIN_S: Final = 10.0
FRESH_S: Final = 60.0
# A credential is not used in its last seconds, which a request may be on its way for.
LAST_S: Final = 10.0
ANSWER_S_MAX: Final = 10.0
CHARS_SHOWN: Final = 200
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
# The service that a signature is for.
_SERVICE: Final = "bedrock"

Log = Callable[..., None]


class CloudSigner(ABC):
    """One upstream's credentials. `why` says in a few words why there are no
    new ones, and is empty once there are; `told` is what was logged of that.

    Times are Unix time. `renew` and what it calls wait; all else does not.
    """

    def __init__(self, target: UpstreamTarget) -> None:
        self._target = target
        self.why = self.told = "they were not read yet"
        self._ends = self._due_at = 0.0
        self._renewing = threading.Lock()

    def is_due(self, now: float) -> bool:
        """Return whether the credentials are due for a renewal, and none is under way."""
        return now >= self._due_at and not self._renewing.locked()

    @property
    def was_tried(self) -> bool:
        """Whether they were read once, or could not be."""
        return self._due_at > 0.0

    def is_ready(self, now: float) -> bool:
        """Return whether a request can be signed."""
        return now < self._ends - LAST_S

    def check(self) -> None:
        """Raise `UpstreamSignedOut` where no request can be signed now."""
        if not self.is_ready(time.time()):
            why = f"The gateway has no valid credentials for the upstream {self._target.name} now."
            raise UpstreamSignedOut(why, retry_after_s=ceil(AGAIN_S))

    def fields(self, url: str) -> dict[str, str]:
        """Return the fields that sign a GET of this URL; `UpstreamSignedOut` where it cannot be signed."""
        self.check()
        parts = urlsplit(url)
        asked = f"{parts.path}?{parts.query}" if parts.query else parts.path
        said = self.sign(f"GET {asked} HTTP/1.1\r\n".encode(), b"").decode("latin-1")
        return dict(line.split(": ", 1) for line in said.splitlines())

    def renew(self, now: float) -> None:
        """Renew the credentials; where that fails, the old ones count until their end."""
        with self._renewing:
            try:
                ends = self._read(now)
            except MissingExtra as error:
                self.why = error.message
            except Exception as error:  # noqa: BLE001  # libraries of clouds raise whatever they meet
                said = " ".join(str(error).split())[:CHARS_SHOWN]
                self.why = f"{type(error).__name__}: {said}" if said else type(error).__name__
            else:
                self._ends, self.why = (float("inf") if ends is None else ends), ""
                ahead_s = 0.0 if ends is None else min(AHEAD_S, (ends - now) / 2)
                self._due_at = now + FRESH_S if ends is None else max(now + AGAIN_S, ends - ahead_s)
                if not self.is_ready(now):
                    self.why = "they have expired"
                return
            self._due_at = now + AGAIN_S

    @abstractmethod
    def sign(self, opening: bytes, body: bytes | None) -> bytes:
        """Return the lines that end the head of a request, given its head so far and its body.

        The body is None where it passes unread.
        """

    @abstractmethod
    def _read(self, now: float) -> float | None:
        """Read the credentials; when they end, None where they do not."""


class GoogleSigner(CloudSigner):
    """An access token by google-auth, of a file or of where the machine has credentials."""

    def __init__(self, target: UpstreamTarget) -> None:
        super().__init__(target)
        self._line = b""
        self._credentials: Any = None

    def sign(self, opening: bytes, body: bytes | None) -> bytes:
        """Return the token, whatever the request is."""
        return self._line

    def _read(self, now: float) -> float | None:
        with loading("google"):
            import google.auth  # noqa: PLC0415  # for upstreams of Google's alone
            from google.auth.transport.requests import Request  # noqa: PLC0415  # as above

        ask = partial(Request(), timeout=ANSWER_S_MAX)
        # Read again each time: the file may be another by now.
        if self._target.credentials_file:
            load: Any = google.auth.load_credentials_from_file
            found, _ = load(self._target.credentials_file, scopes=_SCOPES)
        elif self._credentials is None:
            found, _ = google.auth.default(scopes=_SCOPES)
        else:
            found = self._credentials
        found.refresh(ask)
        self._credentials = found
        token, ends = found.token, found.expiry
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ValueError("no access token was given")
        self._line = b"authorization: Bearer " + token.encode() + b"\r\n"
        return None if ends is None else ends.replace(tzinfo=UTC).timestamp()


class AwsSigner(CloudSigner):
    """Signature Version 4 by botocore, with the credentials of a file, of a role, or of the environment."""

    def __init__(self, target: UpstreamTarget) -> None:
        super().__init__(target)
        parts = urlsplit(target.base_url)
        self._place, self._host = f"{parts.scheme}://{parts.netloc}", parts.netloc
        self._credentials: Any = None
        self._signature: Any = None
        self._request: Any = None

    def sign(self, opening: bytes, body: bytes | None) -> bytes:
        """Return the signature of the request as it is sent, with its time and the session's token."""
        if body is None:
            raise UpstreamUnreachable("A body that passes unread cannot be signed.")
        line, *rest = opening.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        fields = {"host": self._host}
        for one in rest:
            name, _, value = one.partition(":")
            if name.lower() == "content-type" or name.lower().startswith("x-amz-"):
                fields[name.lower()] = value.strip()
        request = self._request(method=method, url=self._place + path, headers=fields, data=body)
        self._signature.add_auth(request)
        said = request.headers
        return b"".join(
            [f"{name}: {said[name]}\r\n".encode("latin-1") for name in AWS_FIELDS if name in said]
        )

    def _read(self, now: float) -> float | None:
        with loading("aws"):
            from botocore.auth import SigV4Auth  # noqa: PLC0415  # for upstreams of Amazon's alone
            from botocore.awsrequest import AWSRequest  # noqa: PLC0415  # as above
            from botocore.session import Session  # noqa: PLC0415  # as above

        file = self._target.credentials_file
        if self._credentials is None or file:
            session = Session()
            if file:
                session.set_config_variable("credentials_file", file)
                session.set_config_variable("profile", "default")  # else variables go before a file
            self._credentials = session.get_credentials()
        # Botocore renews them by itself where they end within a quarter of an hour.
        frozen = None if self._credentials is None else self._credentials.get_frozen_credentials()
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise ValueError("no credentials were found")
        self._request = AWSRequest
        self._signature = SigV4Auth(frozen, _SERVICE, self._target.region)
        ends = getattr(self._credentials, "_expiry_time", None)
        return ends.timestamp() if isinstance(ends, datetime) else None


SIGNERS: Final = {"google": GoogleSigner, "aws": AwsSigner}


def signer_of(target: UpstreamTarget) -> CloudSigner | None:
    """Return the signer of requests to an upstream; None where its headers carry its credential."""
    kind = SIGNERS.get(target.auth)
    return None if kind is None else kind(target)


Signers = Callable[[], Iterable[tuple[str, CloudSigner]]]


async def keep_renewed(signers: Signers, log: Log) -> None:
    """Renew the credentials of upstreams, by their names, ahead of calls, until cancelled."""
    while True:
        now = time.time()
        for name, one in signers():
            if one.is_due(now):  # nobody waits for the thread at the end
                threading.Thread(target=one.renew, args=(now,), name="credentials", daemon=True).start()
            if one.why != one.told and one.was_tried:
                one.told = one.why
                level = {"level": "error"} if one.why else {}
                log("upstream_credentials", upstream=name, why=one.why or "ready", **level)
        await asyncio.sleep(LOOK_S)


async def first_tried(signers: Signers, within_s: float) -> None:
    """Wait until all credentials were asked for once, for so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not all(one.was_tried for _, one in signers()):  # noqa: ASYNC110  # threads set it
                await asyncio.sleep(LOOK_S / 20)
