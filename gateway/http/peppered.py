"""Whom a credential stands for, where it may have been digested under an earlier pepper."""

from __future__ import annotations

from gateway.core.model import Caller
from gateway.errors import InvalidApiKey
from gateway.http.ports import Directory
from gateway.http.routing.call_head import Proof


async def identify_by_any(directory: Directory, proof: Proof) -> Caller:
    """The caller by whichever digest is known; the next call of this proof begins with that one."""
    digests = (proof.digest, *proof.others)
    wrong = InvalidApiKey()
    for digest in digests:
        try:
            caller = directory.cached(digest) or await directory.identify(digest)
        except InvalidApiKey as error:
            wrong = error
            continue
        proof.digest, proof.others = digest, tuple([one for one in digests if one != digest])
        return caller
    raise wrong
