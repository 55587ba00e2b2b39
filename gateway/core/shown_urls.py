"""How a URL is shown, in an error, a log line or a note: whatever might be a secret is cut out.

Also of one that is written wrongly. Whoever says a URL that somebody configured or typed says it by this.
"""

from __future__ import annotations

import re

# Parameters whose values are no secrets; one nobody knows may be `password` misspelt.
_SHOWN = (
    "ssl(?:mode|rootcert|cert|key|crl)|application_name|connect_timeout|target_session_attrs|options|user|username"
    "|host|hostaddr|port|dbname|db|region|scheme|endpoint_override|allow_bucket_(?:creation|deletion)"
)

# Behind a name and a colon, where no host follows: a password whose `@` was forgotten.
_NO_PORT = re.compile(r"(?<=://)([^/@:?#\[\]]*):(?![^@]*@)(?!(?<!//:)[0-9]{1,5}(?:[/?#,]|\Z)).*", re.DOTALL)


def without_password(url: str) -> str:
    """A URL fit for a log line: everything between the user's name and the last `@` is hidden, and every
    parameter that is not known to be harmless.
    """
    shown = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    shown = _NO_PORT.sub(r"\1:***", shown)
    return re.sub(rf"(?<=[?&])(?!(?:{_SHOWN})=)([^=&#]+)=[^&#]*", r"\1=***", shown)
