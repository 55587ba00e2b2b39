"""Run `transformers serve`, and count what its model reads and writes into the file `counts`.

Usage: python serve_transformers.py MODEL PORT

The server has no counters of its own, so they are taken where no report passes: each step of the model that
begins a text reads its prompt, and each step makes one token. The last number tells how many texts run.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.cli.transformers import main

counts = [0, 0, 0, 0]  # tokens of prompts, of these cached, of output; texts that run
generate = LlamaForCausalLM.generate


def write(running: int) -> None:
    """Put the counts into their file, whole."""
    counts[3] += running
    Path("counts.new").write_text(json.dumps(counts))
    Path("counts.new").rename("counts")


def counted(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that counts: without anything kept it reads a prompt."""

    @wraps(step)  # its parameters are looked at
    def count(self: Any, input_ids: Any = None, **more: Any) -> Any:
        kept = more.get("cache", more.get("past_key_values"))  # its name from 5.24 on, and before
        if kept is None or not kept.get_seq_length():
            counts[0] += input_ids.numel()
        counts[2] += input_ids.shape[0]
        return step(self, input_ids, **more)

    return count


def whole(self: Any, *texts: Any, **more: Any) -> Any:
    """Make one text."""
    write(1)
    try:
        return generate(self, *texts, **more)
    finally:
        write(-1)


write(0)
for kind in (LlamaForCausalLM, LlavaForConditionalGeneration):
    kind.forward, kind.generate = counted(kind.forward), whole
words = ["serve", sys.argv[1], "--device", "cpu", "--host", "127.0.0.1", "--port", sys.argv[2]]
sys.argv = ["transformers", *words]
main()
