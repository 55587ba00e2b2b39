#!/bin/sh
# msgspec 0.22.0: a pattern that ends in $ lets a line break through, and the schema it writes says otherwise.
#
# Expected: a text of the pattern ^(free|refuse)$ is one of these two words. JSON Schema takes patterns of ECMA 262, where $ is the very
#           end, and so does Pydantic: both refuse "refuse\n".
# Seen:     msgspec decodes "refuse\n" as it stands, from JSON and YAML alike, and `msgspec.json.schema` writes the same pattern for readers who
#           refuse that text. A comparison with "refuse" behind it is then false. `\Z` in place of $ refuses it, and is no pattern of ECMA 262.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -qq --disable-pip-version-check msgspec==0.22.0 pydantic==2.14.3
venv/bin/python - <<'PYTHON'
import json
from typing import Annotated

import msgspec
import pydantic

PATTERN, BROKEN = "^(free|refuse)$", json.dumps("refuse\n")
Policy = Annotated[str, msgspec.Meta(pattern=PATTERN)]
seen = msgspec.json.decode(BROKEN, type=Policy)
schema = msgspec.json.schema(Policy)
print("msgspec:", repr(seen), "its schema:", schema)
assert seen == "refuse\n" and schema == {"type": "string", "pattern": PATTERN}
try:
    pydantic.TypeAdapter(Annotated[str, pydantic.Field(pattern=PATTERN)]).validate_json(BROKEN)
except pydantic.ValidationError as error:
    print("pydantic:", error.errors()[0]["type"])
else:
    raise SystemExit("pydantic takes it too")
try:
    msgspec.json.decode(BROKEN, type=Annotated[str, msgspec.Meta(pattern=r"^(free|refuse)\Z")])
except msgspec.ValidationError as error:
    print("msgspec with \\Z:", error)
else:
    raise SystemExit("\\Z takes it too")
PYTHON
