"""Single calls over HTTP without TLS, as httpx makes them.

By itself it would read all authorities this machine trusts for each call: that takes thirty times as long.
"""

from __future__ import annotations

import ssl
from functools import partial

import httpx2 as httpx

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

get = partial(httpx.get, verify=NO_TLS, trust_env=False)
post = partial(httpx.post, verify=NO_TLS, trust_env=False)
request = partial(httpx.request, verify=NO_TLS, trust_env=False)
