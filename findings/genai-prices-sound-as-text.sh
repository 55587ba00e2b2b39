#!/bin/sh
# genai-prices 0.2.3: sound in a call of an audio model costs what text costs, and nothing says that a price is missing.
#
# Expected: a kind of token that the list has no price for is reported, as an unknown model is (LookupError), or left out of the
#           total with a sign; for gpt-audio-mini the same list does price sound apart ($10 a million).
# Seen:     1,000 tokens of sound for gpt-4o-mini-audio-preview are $0.00015, its price of text: OpenAI bills $0.01 for them, as
#           LiteLLM's list has it. The result has no field that says so.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check genai-prices==0.2.3 litellm==1.108.7
LITELLM_LOCAL_MODEL_COST_MAP=True "$place/venv/bin/python" - <<'PYTHON'
from decimal import Decimal

import litellm
from genai_prices import Usage, calc_price

SOUND = Usage(input_tokens=1000, input_audio_tokens=1000)


def price(model):
    return calc_price(SOUND, model_ref=model, provider_id="openai")


listed = price("gpt-audio-mini").total_price
silent = price("gpt-4o-mini-audio-preview-2024-12-17")
billed = Decimal(str(litellm.model_cost["gpt-4o-mini-audio-preview-2024-12-17"]["input_cost_per_audio_token"])) * 1000
print("listed:", listed, "; not listed:", silent.total_price, "where", billed, "is billed;", silent)
assert listed == Decimal("0.01")
assert silent.total_price == Decimal("0.00015")
assert billed == Decimal("0.01")
PYTHON
