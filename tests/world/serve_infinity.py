"""Run `infinity_emb`, and count what its models read into the file `counts`.

Usage: python serve_infinity.py FOLDER PORT

The server has no counter of tokens, so they are taken where its models get them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from infinity_emb.cli import cli
from transformers.models.bert.modeling_bert import BertModel

counts = [0, 0, 0, 0]  # tokens that were read, as `serve_transformers.py` has them
step = BertModel.forward


def write(running: int) -> None:
    """Put the counts into their file, whole."""
    counts[3] += running
    Path("counts.new").write_text(json.dumps(counts))
    Path("counts.new").rename("counts")


def counted(self: Any, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
    """Read texts: those of a batch are filled up to one length, which is no use."""
    write(1)
    counts[0] += int(attention_mask.sum())
    try:
        return step(self, input_ids, attention_mask=attention_mask, **more)
    finally:
        write(-1)


write(0)
BertModel.forward = counted
folder, port = sys.argv[1:]
words = ["v2", "--host", "127.0.0.1", "--port", port, "--url-prefix", "/v1", "--no-model-warmup"]
for name in ("embed", "rank"):
    words += ["--model-id", f"{folder}/{name}", "--served-model-name", name, "--device", "cpu"]
    words += ["--dtype", "float32", "--engine", "torch", "--no-bettertransformer", "--no-compile"]
sys.argv = ["infinity_emb", *words]
cli()
