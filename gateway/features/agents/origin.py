"""The one origin that an agent knows: its paths, and how a gateway passes a client's address to a keeper.

A keeper trusts an address with a digest under the pepper, which only keepers and gateways have.
"""

from __future__ import annotations

from typing import Final

from gateway.core.credentials import Peppers, is_among

METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
DEVICE_PATH, TOKEN_PATH, REVOKE_PATH = "/oauth/device_authorization", "/oauth/token", "/oauth/revoke"
SETTINGS_PATH: Final = "/managed/settings"
USAGE_PATH: Final = "/api/oauth/usage"
TELEMETRY_PATHS: Final = ("/v1/metrics", "/v1/logs", "/v1/traces")
# Bytes of a form, of the settings file, and of an answer, where characters beyond ASCII take more bytes.
FORM_BYTES_MAX: Final = 8192
SETTINGS_BYTES_MAX: Final = 256 * 1024
ANSWER_BYTES_MAX: Final = 8 * SETTINGS_BYTES_MAX
SENDER_FIELD: Final = "x-tollkeeper-sender"
# The largest difference between the clocks of a gateway and a keeper.
APART_S_MAX: Final = 300.0


def told_sender(peppers: Peppers, path: str, address: str, now: float) -> str:
    """Return the value of the header by which a gateway states a client's address to a keeper.

    It has the time, the address and a digest of both.
    """
    second = int(now)
    return f"{second} {address} {peppers.digest(_proof_text(path, address, second))}"


def sender_of(peppers: Peppers, path: str, field: str, now: float) -> str:
    """Return the client's address that a gateway stated in the header `field`.

    Return an empty text if the digest is wrong or too old.
    """
    second, _, rest = field.partition(" ")
    address, _, digest = rest.partition(" ")
    if not (second.isascii() and second.isdigit() and len(second) <= 12 and digest.isascii()):
        return ""
    is_ours = is_among(digest, peppers.digests(_proof_text(path, address, int(second))))
    return address if is_ours and abs(now - int(second)) <= APART_S_MAX else ""


def _proof_text(path: str, address: str, second: int) -> str:
    """Return the text whose digest proves a client's address.

    It contains a NUL, as no credential does, so a digest of one cannot be used for the other.
    """
    return f"\0agents sender {second} {path} {address}"
