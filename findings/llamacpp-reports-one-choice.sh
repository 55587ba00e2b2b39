#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549): `usage` of a chat with n=3 is one choice's, not the sum.
#
# Expected: as OpenAI documents it and vLLM does it, `completion_tokens` counts the tokens of all choices of the request.
# Seen:     with n=3 and a maximum of 5 three choices of 5 tokens come, and the server's own counter
#           `llamacpp:tokens_predicted_total` rises by 15; `usage.completion_tokens` says 5. A list of two prompts at
#           /v1/completions: 10 are made, 5 are reported. Whoever bills by `usage` bills a third, or a half.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-compile --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0
cd "$place"
NO_PROXY=127.0.0.1 "$place/venv/bin/python" - <<'PYTHON'
import json
import re
import socket
import urllib.request

import gguf
import numpy as np
import xllamacpp

TOKENS = [*map(chr, range(33, 127)), "\u0120", "\u010a", "<|end|>", "<|begin|>"]
WIDTH = 64


def write_model(name):
    """Write a model of one random layer that knows single characters."""
    draw = np.random.default_rng(7)
    made = gguf.GGUFWriter(name, "llama")
    made.add_context_length(512)
    made.add_embedding_length(WIDTH)
    made.add_block_count(1)
    made.add_feed_forward_length(WIDTH)
    made.add_head_count(4)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_dimension_count(WIDTH // 4)
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    made.add_token_list(TOKENS)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    made.add_token_types([kinds[len(token) > 1] for token in TOKENS])
    made.add_token_merges(["t o"])
    made.add_eos_token_id(len(TOKENS) - 2)
    made.add_bos_token_id(len(TOKENS) - 1)
    made.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name in ("token_embd", "output"):
        made.add_tensor(f"{name}.weight", draw.normal(0, 0.1, (len(TOKENS), WIDTH)).astype(np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        made.add_tensor(f"blk.0.{name}.weight", draw.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        made.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


write_model("tiny.gguf")
parameters = xllamacpp.CommonParams()
parameters.model.path = "tiny.gguf"
with socket.create_server(("127.0.0.1", 0)) as taken:
    parameters.hostnames, parameters.port = ["127.0.0.1"], taken.getsockname()[1]
parameters.n_parallel, parameters.n_ctx = 4, 2048
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.endpoint_metrics, parameters.warmup = True, False
server = xllamacpp.Server(parameters)
place = f"http://127.0.0.1:{parameters.port}"


def made_tokens():
    text = urllib.request.urlopen(f"{place}/metrics").read().decode()
    return int(float(re.search(r"^llamacpp:tokens_predicted_total (\S+)", text, re.MULTILINE)[1]))


def ask(path, **body):
    """Return the choices of an answer, the reported tokens, and those that the server counted."""
    before = made_tokens()
    body |= {"max_tokens": 5, "ignore_eos": True}
    request = urllib.request.Request(
        place + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request))
    return len(answer["choices"]), answer["usage"]["completion_tokens"], made_tokens() - before


hello = [{"role": "user", "content": "Hello"}]
one = ask("/v1/chat/completions", messages=hello)
three = ask("/v1/chat/completions", messages=hello, n=3)
prompts = ask("/v1/completions", prompt=["Hello", "there"])
print("choices, reported, made:", one, three, prompts)
assert (one, three, prompts) == ((1, 5, 5), (3, 5, 15), (2, 5, 10)), (one, three, prompts)
PYTHON
