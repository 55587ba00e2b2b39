"""Make a model of two random layers with a vocabulary of its own, for programs that only count.

Usage: python tiny.py gguf FILE, or python tiny.py hf FOLDER, by a Python that has `gguf`, or `transformers`
and `torch`. With `bert`, FOLDER gets two, `embed` and `rank`. The one of `sees` takes images, and that of
`adapted` thinks, and has a LoRA adapter. All have one vocabulary, so a text has as many tokens for each. It
knows ASCII alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WORDS = ("the", "toll", "gate", "road", "pay", "here", "and", "bridge", "keeper", "coin")
SPECIAL = ("<|end|>", "<|begin|>", "<|unknown|>")
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
IMAGE, PIXELS, PATCH, RANK = "<image>", 112, 14, 8
SEEING = TEMPLATE.replace(
    "{{ m['content'] }}",
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image>{% endif %}{% endfor %}{% endif %}",
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


def write_hf(folder: Path, *more: str) -> None:
    """Write it for transformers, with its tokenizer, which knows these marks too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = write_tokenizer(folder, *more)
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


def write_adapted(folder: Path) -> None:
    """Write it with a LoRA adapter of each first projection, in the folder `adapter` beside it."""
    import torch
    from safetensors.torch import save_file

    write_hf(folder, "<think>", "</think>")
    (adapter := folder.with_name("adapter")).mkdir(exist_ok=True)
    drawn = torch.Generator().manual_seed(SEED)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.randn(
            shape, generator=drawn
        )
        for layer in range(LAYERS)
        for side, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    said |= {"target_modules": ["q_proj"], "base_model_name_or_path": folder.name}
    (adapter / "adapter_config.json").write_text(json.dumps(said))


def write_sees(folder: Path) -> None:
    """Write one that takes images: each is cut into parts, and has a token for each of them."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = write_tokenizer(folder, IMAGE)
    read = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(SEED)
    end, begin = tokens.index("<|end|>"), tokens.index("<|begin|>")
    layers = {"intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    text = LlamaConfig(
        **layers, hidden_size=WIDTH, vocab_size=len(tokens), max_position_embeddings=CONTEXT,
        eos_token_id=end, bos_token_id=begin, pad_token_id=end, initializer_range=0.1,
    )  # fmt: skip
    vision = CLIPVisionConfig(**layers, hidden_size=WIDTH, image_size=PIXELS, patch_size=PATCH)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=tokens.index(IMAGE), pad_token_id=end
        )
    )
    model.generation_config.update(do_sample=True, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    size = {"height": PIXELS, "width": PIXELS}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    LlavaProcessor(
        images, read, patch_size=PATCH, vision_feature_select_strategy="default", image_token=IMAGE,
        chat_template=SEEING, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


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


def write_tokenizer(folder: Path, *more: str) -> list[str]:
    """Write the tokenizer of transformers with more marks than usual, and return its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, merges = vocabulary()
    tokens += more
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
        additional_special_tokens=[*more],
    )
    read.chat_template = TEMPLATE
    read.save_pretrained(folder)
    return tokens


if __name__ == "__main__":
    globals()[f"write_{sys.argv[1]}"](Path(sys.argv[2]))
