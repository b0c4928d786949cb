"""Decoders as encoders: Qwen, Mistral, Llama, Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.models import vocabularies
from tests.models.checkpoint_files import (
    HIDDEN,
    IDENTITY,
    SIZE,
    Dense,
    Modules,
    edit_json,
    hf,
    write_model,
    write_tokenizer,
)

WEB_SEARCH = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
_GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
_CHAT = "{% for message in messages %}{{ message.role + message.content }}{% endfor %}"


def qwen_tokenizer(directory: Path, limit: int) -> int:
    """Qwen's: tokenizer_config.json names the slow class and has a chat template."""
    size = write_tokenizer(
        directory,
        vocabularies.qwen(),
        "Qwen2TokenizerFast",
        pad_token="<|endoftext|>",  # noqa: S106  # a token of text
        eos_token="<|im_end|>",  # noqa: S106
        padding_side="left",
        model_max_length=limit,
    )
    edit_json(
        directory / "tokenizer_config.json",
        chat_template=_CHAT,
        add_bos_token=False,
        add_prefix_space=False,
        errors="replace",
        split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer",
    )
    return size


def qwen3(directory: Path) -> None:
    """Qwen3-Embedding: bfloat16, the last token, no sentence_bert_config.json."""
    size = qwen_tokenizer(directory, 131072)
    config = hf.Qwen3Config(
        vocab_size=size,
        max_position_embeddings=2048,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        **SIZE,
        **_GROUPED,
    )
    hub = {"architectures": ["Qwen3ForCausalLM"], "use_cache": True}
    write_model(directory, config, dtype=torch.bfloat16, hub=hub)
    Modules("lasttoken", None, prompts={"query": WEB_SEARCH, "document": ""}).write(directory)


def kalm(directory: Path) -> None:
    """KaLM-embedding-mini: Qwen 2, causal, mean."""
    size = qwen_tokenizer(directory, 32768)
    config = hf.Qwen2Config(
        vocab_size=size,
        max_position_embeddings=2048,
        rope_theta=1000000.0,
        bos_token_id=0,
        eos_token_id=0,
        num_key_value_heads=2,
        **SIZE,
    )
    write_model(directory, config, hub={"architectures": ["Qwen2Model"]})
    Modules("mean_tokens", 512, prompts={}).write(directory)


def both_ways(directory: Path) -> None:
    """A Qwen 2 that looks both ways by a key of config.json, which transformers 5 reads."""
    kalm(directory)
    edit_json(directory / "config.json", is_causal=False)


def stella(directory: Path) -> None:
    """stella_en_1.5B_v5, gte-Qwen2: the same by code of its own."""
    kalm(directory)
    edit_json(directory / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})


def _llama_tokenizer(directory: Path, limit: int) -> int:
    return write_tokenizer(
        directory,
        vocabularies.llama(),
        "LlamaTokenizerFast",
        add_bos_token=True,
        add_eos_token=True,
        legacy=True,
        pad_token="</s>",  # noqa: S106  # a token of text
        padding_side="left",
        model_max_length=limit,
    )


def mistral(directory: Path) -> None:
    """e5-mistral, Linq, SFR: float16 in several files, a sliding window, the last token."""
    size = _llama_tokenizer(directory, 4096)
    config = hf.MistralConfig(
        vocab_size=size,
        max_position_embeddings=4096,
        sliding_window=256,
        pad_token_id=2,
        num_key_value_heads=2,
        **SIZE,
    )
    write_model(directory, config, dtype=torch.float16, shard="150KB")
    Modules("lasttoken", 4096, prompts={"web_search_query": WEB_SEARCH}).write(directory)


def llama(directory: Path) -> None:
    """sarashina-embedding and others after Llama, with the scaled positions of Llama 3.1."""
    size = _llama_tokenizer(directory, 8192)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config = hf.LlamaConfig(
        vocab_size=size,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        rope_scaling=scaling,
        pad_token_id=2,
        num_key_value_heads=2,
        **SIZE,
    )
    write_model(directory, config, hub={"architectures": ["LlamaModel"]})
    Modules("lasttoken", 8192, prompts={}).write(directory)


# -- Gemma -------------------------------------------------------------------------------------

_GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_GEMMA_SIZE = {**SIZE, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16}


def gemma_tokenizer(directory: Path, limit: int, **options: Any) -> int:
    return write_tokenizer(
        directory,
        vocabularies.gemma(),
        "GemmaTokenizerFast",
        add_bos_token=True,
        add_eos_token=True,
        pad_token="<pad>",  # noqa: S106  # tokens of text
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        mask_token="<mask>",  # noqa: S106
        model_max_length=limit,
        **options,
    )


def embeddinggemma(directory: Path) -> None:
    """Both ways, windows, two Dense modules, many prompts."""
    size = gemma_tokenizer(directory, 2048)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = hf.Gemma3TextConfig(
        vocab_size=size,
        use_bidirectional_attention=True,
        max_position_embeddings=2048,
        sliding_window=128,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        layer_types=kinds,
        **_GEMMA_IDS,
        **{**_GEMMA_SIZE, "num_hidden_layers": len(kinds)},
    )
    write_model(directory, config)
    dense = [Dense(HIDDEN, 256, IDENTITY, bias=False), Dense(256, HIDDEN, IDENTITY, bias=False)]
    prompts = {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "Clustering": "task: clustering | query: ",
    }
    Modules("mean_tokens", 2048, dense, prompts=prompts).write(directory)


def harrier(directory: Path, rope: Mapping[str, float] | None = None) -> None:
    """harrier-oss-v1-270m: Gemma 3, causal, bfloat16, the last token."""
    size = gemma_tokenizer(directory, 32768, padding_side="left")
    config = hf.Gemma3TextConfig(
        vocab_size=size,
        max_position_embeddings=32768,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"],
        **_GEMMA_IDS,
        **_GEMMA_SIZE,
        **(rope or {}),
    )
    write_model(directory, config, dtype=torch.bfloat16)
    prompts = {
        "web_search_query": WEB_SEARCH,
        "sts_query": "Instruct: Retrieve semantically similar text\nQuery: ",
    }
    Modules("lasttoken", 2048, prompts=prompts).write(directory)


def gemma3_other_thetas(directory: Path) -> None:
    """Its positions turn at other speeds than the library's defaults."""
    harrier(directory, {"rope_theta": 70000.0, "rope_local_base_freq": 500.0})


def gemma2(directory: Path) -> None:
    """bge-multilingual-gemma2."""
    size = gemma_tokenizer(directory, 8192)
    config = hf.Gemma2Config(
        vocab_size=size,
        max_position_embeddings=8192,
        sliding_window=256,
        **_GEMMA_IDS,
        **_GEMMA_SIZE,
    )
    write_model(directory, config)
    prompt = "<instruct>Given a web search query, retrieve relevant passages.\n<query>"
    Modules("lasttoken", 512, prompts={"web_search_query": prompt}).write(directory)


def gemma(directory: Path) -> None:
    """The first Gemma."""
    size = gemma_tokenizer(directory, 8192)
    sizes = {**SIZE, "num_key_value_heads": 1, "head_dim": 16}
    config = hf.GemmaConfig(
        vocab_size=size,
        max_position_embeddings=8192,
        hidden_activation="gelu_pytorch_tanh",
        **_GEMMA_IDS,
        **sizes,
    )
    write_model(directory, config)
    Modules("lasttoken", 2048, prompts={}).write(directory)


# -- Architectures that transformers 4 does not have: made by today's ----------------------------


def eurobert(directory: Path) -> None:
    """EuroBERT: Llama's layers, both ways; natively saved, as fine-tunes of today are."""
    tokenizer = vocabularies.llama()
    size = _today(directory, tokenizer, "<unk>")
    config = hf.EuroBertConfig(
        vocab_size=size, max_position_embeddings=8192, pad_token_id=0, num_key_value_heads=4, **SIZE
    )
    write_model(directory, config)
    Modules("mean_tokens", 8192, prompts={}).write(directory)


def ministral3(directory: Path) -> None:
    """Ministral 3: queries are scaled by their position."""
    size = _today(directory, vocabularies.llama(), "</s>")
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    config = hf.Ministral3Config(
        vocab_size=size, max_position_embeddings=2048, rope_parameters=rope, **SIZE, **_GROUPED
    )
    write_model(directory, config)
    Modules("lasttoken", 2048, prompts={}).write(directory)


def ministral(directory: Path) -> None:
    """Ministral: a window in every other layer."""
    size = _today(directory, vocabularies.llama(), "</s>")
    config = hf.MinistralConfig(
        vocab_size=size,
        max_position_embeddings=4096,
        sliding_window=64,
        layer_types=["full_attention", "sliding_attention"],
        **SIZE,
        **_GROUPED,
    )
    write_model(directory, config)
    Modules("lasttoken", 4096, prompts={}).write(directory)


def _today(directory: Path, tokenizer: Any, pad: str) -> int:
    return write_tokenizer(
        directory,
        tokenizer,
        "PreTrainedTokenizerFast",
        pad_token=pad,
        bos_token="<s>",  # noqa: S106  # tokens of text
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=8192,
    )
