"""Asking a provider of identities for tokens: the client and its secret, a form, an answer in JSON.

It waits, so a thread runs it.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from gateway.core.issuers.sign_in import Provider
from gateway.core.shown_urls import without_password
from gateway.errors import TollkeeperError
from gateway.issuers.fetching import post_form, read_file
from gateway.issuers.key_set import Endpoints, UnreadableKeys

_ERROR: Final = re.compile(r"[a-z_]{1,64}", re.ASCII)


class TokensRefused(TollkeeperError):
    """The provider gives no tokens; the message is its word for why (RFC 6749, 5.2)."""

    reason = "tokens_refused"
    status = 502


def ask_for_tokens(provider: Provider, endpoints: Endpoints, form: Mapping[str, str]) -> Mapping[str, Any]:
    """What is given for a form: `TokensRefused` where nothing is, `UnreadableKeys` where nobody answers."""
    sent, fields, secret = dict(form), {}, _secret_of(provider)
    if secret and not endpoints.sends_post:
        pair = f"{quote_plus(provider.client_id)}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
        fields["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    else:
        sent["client_id"] = provider.client_id
        if secret:
            sent["client_secret"] = secret
    status, body = post_form(provider.issuer, endpoints.token, urlencode(sent).encode(), fields)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if status == 200 and isinstance(said, dict):
        return said
    word = said.get("error") if isinstance(said, dict) else None
    if status in {400, 401, 403} and isinstance(word, str) and _ERROR.fullmatch(word):
        raise TokensRefused(word)
    raise UnreadableKeys(f"{without_password(endpoints.token)} answers {status}, and no JSON that says what")


def _secret_of(provider: Provider) -> str:
    """The client's secret, read anew where it is in a file; empty where it has none."""
    if not provider.client_secret_file:
        return provider.client_secret
    try:
        return read_file(provider.client_secret_file).decode("ascii").strip()
    except (OSError, ValueError) as error:
        said = f"the client's secret cannot be read from {provider.client_secret_file}"
        raise UnreadableKeys(said) from error
