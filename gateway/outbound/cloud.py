"""Cloud credentials of upstreams: renewed ahead of their end, and used to sign requests.

The cloud's own library finds them: in a file, in the environment, or from the machine. That may block, so
`renew` runs in a separate thread, and no call waits for it. Signing a request does no I/O.
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

# Interval of checks for due renewals, and the time before its end at which a credential is renewed.
LOOK_S: Final = 1.0
AHEAD_S: Final = 600.0
# Interval after a failure, and after reading a credential without an end, whose file may change.
AGAIN_S: Final = 10.0
FRESH_S: Final = 60.0
# A credential is not used in its last seconds, as a request takes time to arrive.
LAST_S: Final = 10.0
ANSWER_S_MAX: Final = 10.0
CHARS_SHOWN: Final = 200
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
# The AWS service in signatures.
_SERVICE: Final = "bedrock"

Log = Callable[..., None]


class CloudSigner(ABC):
    """The cloud credentials of one upstream, which sign its requests. Times are Unix time.

    `why` is the reason for a failed renewal, empty after a successful one; `told` is the reason logged last.
    Only `renew`, and what it calls, may block.
    """

    def __init__(self, target: UpstreamTarget) -> None:
        self._target = target
        self.why = self.told = "they were not read yet"
        self._ends = self._due_at = 0.0
        self._renewing = threading.Lock()

    def is_due(self, now: float) -> bool:
        """Return whether to renew the credentials now: they expire soon, and no renewal is running."""
        return now >= self._due_at and not self._renewing.locked()

    @property
    def was_tried(self) -> bool:
        """Whether reading the credentials was tried at least once."""
        return self._due_at > 0.0

    def is_ready(self, now: float) -> bool:
        """Return whether the credentials are valid at Unix time `now`, so that a request can be signed."""
        return now < self._ends - LAST_S

    def check(self) -> None:
        """Raise `UpstreamSignedOut` if no request can be signed now."""
        if not self.is_ready(time.time()):
            why = f"The gateway has no valid credentials for the upstream {self._target.name} now."
            raise UpstreamSignedOut(why, retry_after_s=ceil(AGAIN_S))

    def fields(self, url: str) -> dict[str, str]:
        """Return the header fields that sign a GET of this URL; may raise `UpstreamSignedOut`."""
        self.check()
        parts = urlsplit(url)
        asked = f"{parts.path}?{parts.query}" if parts.query else parts.path
        said = self.sign(f"GET {asked} HTTP/1.1\r\n".encode(), b"").decode("latin-1")
        return dict(line.split(": ", 1) for line in said.splitlines())

    def renew(self, now: float) -> None:
        """Renew the credentials; if this fails, the old ones are used until they expire."""
        with self._renewing:
            try:
                ends = self._read(now)
            except MissingExtra as error:
                self.why = error.message
            except Exception as error:  # noqa: BLE001  # clouds' libraries raise many types
                message = " ".join(str(error).split())[:CHARS_SHOWN]
                self.why = f"{type(error).__name__}: {message}" if message else type(error).__name__
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
        """Return the signature as the last header lines of a request, given the head so far and the body.

        `body` is None if it is forwarded unread.
        """

    @abstractmethod
    def _read(self, now: float) -> float | None:
        """Read the credentials; return their expiry as Unix time, or None if they do not expire."""


class GoogleSigner(CloudSigner):
    """Signs with an access token from google-auth, by a file or the machine's own credentials."""

    def __init__(self, target: UpstreamTarget) -> None:
        super().__init__(target)
        self._line = b""
        self._credentials: Any = None

    def sign(self, opening: bytes, body: bytes | None) -> bytes:
        """Return the token's header line, which is the same for all requests."""
        return self._line

    def _read(self, now: float) -> float | None:
        """Renew the access token; return its expiry in Unix time, or None if it has none."""
        with loading("google"):
            import google.auth  # noqa: PLC0415  # needed for Google's upstreams only
            from google.auth.transport.requests import Request  # noqa: PLC0415  # as above

        ask = partial(Request(), timeout=ANSWER_S_MAX)
        # Read again each time, as the file may have changed.
        if self._target.credentials_file:
            load: Any = google.auth.load_credentials_from_file
            credentials, _ = load(self._target.credentials_file, scopes=_SCOPES)
        elif self._credentials is None:
            credentials, _ = google.auth.default(scopes=_SCOPES)
        else:
            credentials = self._credentials
        credentials.refresh(ask)
        self._credentials = credentials
        token, ends = credentials.token, credentials.expiry
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ValueError("no access token was given")
        self._line = b"authorization: Bearer " + token.encode() + b"\r\n"
        return None if ends is None else ends.replace(tzinfo=UTC).timestamp()


class AwsSigner(CloudSigner):
    """Signs with Signature Version 4 by botocore, with credentials of a file, a role, or the environment."""

    def __init__(self, target: UpstreamTarget) -> None:
        super().__init__(target)
        parts = urlsplit(target.base_url)
        self._place, self._host = f"{parts.scheme}://{parts.netloc}", parts.netloc
        self._credentials: Any = None
        self._signature: Any = None
        self._request: Any = None

    def sign(self, opening: bytes, body: bytes | None) -> bytes:
        """Return the header lines that sign a request, with the time and the session's token.

        Raise `UpstreamUnreachable` if `body` is None, because the signature includes the body.
        """
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
        headers = request.headers
        return b"".join(
            [f"{name}: {headers[name]}\r\n".encode("latin-1") for name in AWS_FIELDS if name in headers]
        )

    def _read(self, now: float) -> float | None:
        """Renew the credentials; return their expiry in Unix time, or None if they have none."""
        with loading("aws"):
            from botocore.auth import SigV4Auth  # noqa: PLC0415  # needed for Amazon's upstreams only
            from botocore.awsrequest import AWSRequest  # noqa: PLC0415  # as above
            from botocore.session import Session  # noqa: PLC0415  # as above

        file = self._target.credentials_file
        if self._credentials is None or file:
            session = Session()
            if file:
                session.set_config_variable("credentials_file", file)
                session.set_config_variable("profile", "default")  # else variables override the file
            self._credentials = session.get_credentials()
        # Botocore renews credentials that end within a quarter of an hour.
        frozen = None if self._credentials is None else self._credentials.get_frozen_credentials()
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise ValueError("no credentials were found")
        self._request = AWSRequest
        self._signature = SigV4Auth(frozen, _SERVICE, self._target.region)
        ends = getattr(self._credentials, "_expiry_time", None)
        return ends.timestamp() if isinstance(ends, datetime) else None


SIGNERS: Final = {"google": GoogleSigner, "aws": AwsSigner}


def signer_of(target: UpstreamTarget) -> CloudSigner | None:
    """Return the signer of an upstream's requests; None if its headers contain the credential."""
    kind = SIGNERS.get(target.auth)
    return None if kind is None else kind(target)


Signers = Callable[[], Iterable[tuple[str, CloudSigner]]]


async def keep_renewed(signers: Signers, log: Log) -> None:
    """Renew the credentials of all upstreams before they expire, until cancelled.

    `signers` are by the upstream's name.
    """
    while True:
        now = time.time()
        for name, one in signers():
            if one.is_due(now):  # shutdown does not wait for the thread
                threading.Thread(target=one.renew, args=(now,), name="credentials", daemon=True).start()
            if one.why != one.told and one.was_tried:
                one.told = one.why
                level = {"level": "error"} if one.why else {}
                log("upstream_credentials", upstream=name, why=one.why or "ready", **level)
        await asyncio.sleep(LOOK_S)


async def first_tried(signers: Signers, within_s: float) -> None:
    """Wait until every signer has tried to read its credentials once, for at most `within_s` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not all(one.was_tried for _, one in signers()):  # noqa: ASYNC110  # threads set it
                await asyncio.sleep(LOOK_S / 20)
