"""What a caller's signed token takes of a gateway's CPU: `python -m tests.bench.tokens`.

A token that is known, beside a key that is; and one that nobody has seen before, by each of the usual
algorithms, from its bytes to its caller. Rounds are interleaved; nothing is fetched meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from gateway.core.credentials import Peppers
from gateway.core.issuers import read_token
from gateway.core.model import Caller
from gateway.issuers.callers import TokenCallers
from gateway.issuers.fetching import read_key_set
from gateway.issuers.keys import AllKeys
from tests.signing import claims, ec_key, issuer, jwks, public_jwk, rsa_key, token

ROUNDS, KNOWN, NEW = 15, 20_000, 40
CALLER = Caller(1, 2, 3, 4)


class Known:
    """A directory that knows everybody."""

    def cached(self, digest: str) -> Caller | None:
        return CALLER

    async def identify(self, digest: str) -> Caller:
        return CALLER


async def measure(rounds: int = ROUNDS, known: int = KNOWN, new: int = NEW) -> dict[str, list[float]]:
    """Microseconds of each kind, by round."""
    document = jwks(public_jwk(rsa_key(), kid="RS256"), public_jwk(ec_key(), kid="ES256"))
    key_set = read_key_set(document)
    keys = AllKeys(time.monotonic, lambda *_, **__: None, lambda _: key_set)
    directory = Known()
    callers = TokenCallers(keys, directory, Peppers(b"a-pepper-of-a-bench").digests, time.time)
    callers.renew([issuer(user="/sub")])
    await callers.identify("known", token(kid="RS256"))
    took: dict[str, list[float]] = {}

    def note(what: str, began: float, times: int) -> None:
        took.setdefault(what, []).append((time.perf_counter() - began) / times * 1e6)

    for turn in range(rounds):
        for what, cached in (
            ("a key that is known", directory.cached),
            ("a token that is known", callers.cached),
        ):
            began = time.perf_counter()
            for _ in range(known):
                cached("known")
            note(what, began, known)
        for algorithm in ("RS256", "ES256"):
            fresh = [
                token(claims(jti=f"{turn} {number}", groups=["a"] * 10), algorithm=algorithm, kid=algorithm)
                for number in range(new)
            ]
            began = time.perf_counter()
            for number, each in enumerate(fresh):
                await callers.identify(f"{algorithm} {turn} {number}", each)
            note(f"a new token, {algorithm}", began, new)
            said = [read_token(each) for each in fresh]
            key = key_set.find(said[0])
            assert key is not None
            began = time.perf_counter()
            for one in said:
                key.verifies(one)
            note(f"of that the signature, {algorithm}", began, new)
    return took


if __name__ == "__main__":
    found = asyncio.run(measure())
    print(f"{ROUNDS} interleaved rounds, {KNOWN:,} known and {NEW} new ones each, µs")
    for kind, each in found.items():
        print(f"{kind}: {statistics.median(each):.2f} (best {min(each):.2f})")
