"""Make a model of two random layers with a vocabulary of its own, for programs that only count.

Usage: python tiny.py gguf FILE, or python tiny.py hf FOLDER, by a Python that has `gguf`, or `transformers`
and `torch`; with `bert`, FOLDER gets two, `embed` and `rank`. All have one vocabulary, so a text has as many
tokens for each program. It knows ASCII alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

WORDS = ("the", "toll", "gate", "road", "pay", "here", "and", "bridge", "keeper", "coin")
SPECIAL = ("<|end|>", "<|begin|>", "<|unknown|>")
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
CONTEXT, WIDTH, HIDDEN, HEADS, LAYERS, SEED = 2_048, 64, 128, 2, 2, 7


def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens in order of their ids, and the merges that make words of letters."""
    tokens, merges = [*map(chr, range(33, 127)), "\u0120", "\u010a", "\u0109"], []
    for word in (*WORDS, *(f"\u0120{word}" for word in WORDS)):
        whole = word[0]
        for letter in word[1:]:
            if whole + letter not in tokens:
                tokens.append(whole + letter)
                merges.append(f"{whole} {letter}")
            whole += letter
    return [*tokens, *SPECIAL], merges


def write_gguf(file: Path) -> None:
    """Write it for llama.cpp, with its template of chats."""
    import gguf
    import numpy as np

    tokens, merges = vocabulary()
    drawn = np.random.default_rng(SEED)
    made = gguf.GGUFWriter(file, "llama")
    made.add_context_length(CONTEXT)
    made.add_embedding_length(WIDTH)
    made.add_block_count(LAYERS)
    made.add_feed_forward_length(HIDDEN)
    made.add_head_count(HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_dimension_count(WIDTH // HEADS)
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    made.add_token_list(tokens)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    made.add_token_types([kinds[token in SPECIAL] for token in tokens])
    made.add_token_merges(merges)
    made.add_eos_token_id(tokens.index("<|end|>"))
    made.add_bos_token_id(tokens.index("<|begin|>"))
    made.add_add_bos_token(False)
    made.add_chat_template(TEMPLATE)
    square, wide = (WIDTH, WIDTH), (HIDDEN, WIDTH)
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH)}
    for layer in range(LAYERS):
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square)
        parts |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    norms = ["output_norm", *(f"blk.{at}.{name}_norm" for at in range(LAYERS) for name in ("attn", "ffn"))]
    for name, shape in shapes.items():
        made.add_tensor(f"{name}.weight", drawn.normal(0, 0.1, shape).astype(np.float32))
    for name in norms:
        made.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def write_hf(folder: Path) -> None:
    """Write it for transformers, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = write_tokenizer(folder)
    torch.manual_seed(SEED)
    end, begin = tokens.index("<|end|>"), tokens.index("<|begin|>")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, max_position_embeddings=CONTEXT, eos_token_id=end, bos_token_id=begin,
            pad_token_id=end, initializer_range=0.1,
        )
    )  # fmt: skip
    model.generation_config.update(do_sample=True, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)


def write_bert(folder: Path) -> None:
    """Write one that embeds, and one that compares two texts, for transformers."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(SEED)
    for name, kind in (("embed", BertModel), ("rank", BertForSequenceClassification)):
        tokens = write_tokenizer(folder / name)
        sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
        sizes |= {"num_attention_heads": HEADS, "vocab_size": len(tokens), "max_position_embeddings": CONTEXT}
        kind(BertConfig(**sizes, num_labels=1)).save_pretrained(folder / name)


def write_tokenizer(folder: Path) -> list[str]:
    """Write the tokenizer of transformers, and return its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, merges = vocabulary()
    pairs: Any = [tuple(pair.split(" ")) for pair in merges]
    made = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    read = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        pad_token="<|end|>",
    )
    read.chat_template = TEMPLATE
    read.save_pretrained(folder)
    return tokens


if __name__ == "__main__":
    {"gguf": write_gguf, "hf": write_hf, "bert": write_bert}[sys.argv[1]](Path(sys.argv[2]))
