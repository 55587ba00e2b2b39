#!/bin/sh
# orjson 3.13.0: an integer of 65 bits or more is read as a float, without an error.
#
# Expected: orjson is known for being strict (it refuses NaN, and refuses to write integers beyond 64 bits), so it
#           refuses to read one, or reads it exactly, as json, msgspec 0.22.0, ujson 6.1.0 and rapidjson do.
# Seen:     loads("18446744073709551615") is that integer; loads("18446744073709551617") is 1.8446744073709552e+19.
#           A number read and written again is another number, of another type: identifiers of 20 digits and more, and
#           amounts in small units, change on their way through. dumps of the same integer is a TypeError.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check orjson==3.13.0 msgspec==0.22.0 ujson==6.1.0 \
    python-rapidjson==1.25
"$place/venv/bin/python" - <<'PYTHON'
import json

import msgspec
import orjson
import rapidjson
import ujson

fits, beyond = 2**64 - 1, 2**64 + 1
for read in (json.loads, msgspec.json.decode, ujson.loads, rapidjson.loads):
    assert read(str(beyond)) == beyond
read = orjson.loads(str(beyond))
print("orjson", orjson.loads(str(fits)), repr(read), orjson.dumps(read))
assert orjson.loads(str(fits)) == fits
assert isinstance(read, float)
assert orjson.dumps(read) == b"1.8446744073709552e+19"
try:
    orjson.dumps(beyond)
except TypeError as error:
    print("orjson.dumps:", error)
else:
    raise AssertionError("it wrote the integer")
PYTHON
