"""Every shape: who writes its files, what models.toml asks for, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# What the line of a refusal must contain: a file, and a key or a value.
Words = tuple[str, ...]
NO_WISHES: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of files.

    `maker` is a function of tests.models.makers, MODULE.FUNCTION. `native` names a writer of
    tests.models.native: then the hub's files cannot be read by today's libraries, and what those
    write is the reference, and is what they save again. `wishes` are keys of models.toml.
    `refused`: the published files; `resaved_refused`: the same saved again. None: not saved again,
    as today's libraries cannot load them. `by_today`: written by
    today's libraries, as transformers 4 does not have the model.
    """

    maker: str
    native: str | None = None
    wishes: Mapping[str, object] = field(default_factory=lambda: NO_WISHES)
    refused: Words = ()
    resaved_refused: Words | None = ()
    convert_pickle: bool = False
    by_today: bool = False


def _not_loaded(maker: str, *words: str, native: str | None = None) -> Shape:
    """Refused, and nothing that today's libraries can load and save."""
    return Shape(maker, native=native, refused=words, resaved_refused=None)


_NOMIC_15: Mapping[str, object] = {
    "finishing": ("layer_norm", "normalize"),
    "matryoshka": (64, 32),
    "prompts": {"search_query": "search_query: "},
}

SHAPES: Mapping[str, Shape] = {
    # BERT and its relatives.
    "bert-mean-minilm": Shape("bert.minilm"),
    "bert-cls-bge": Shape("bert.bge"),
    "bert-cls-mxbai-fp16": Shape("bert.mxbai"),
    "bert-with-head": Shape("bert.with_head"),
    "bert-several-modes": Shape("bert.several_modes"),
    "bert-unigram-multilingual-minilm": Shape("sentencepiece.multilingual_minilm"),
    "labse": Shape("bert.labse"),
    "distilbert-mean": Shape("bert.msmarco"),
    "distiluse-dense-tanh": Shape("bert.distiluse"),
    "clip-multilingual-text": Shape("bert.clip_text"),
    "mpnet": Shape("bert.mpnet"),
    "electra": Shape("bert.electra"),
    "ernie": Shape("bert.ernie"),
    "data2vec-text": Shape("sentencepiece.data2vec"),
    "roberta-distilroberta": Shape("sentencepiece.distilroberta"),
    "roberta-no-limit": Shape(
        "sentencepiece.roberta_without_limit",
        refused=("514", "max_tokens = 512"),
        resaved_refused=("514", "max_tokens = 512"),
    ),
    "roberta-no-limit-512": Shape(
        "sentencepiece.roberta_without_limit", wishes={"max_tokens": 512}
    ),
    "xlmr-mean-e5": Shape("sentencepiece.e5"),
    "xlmr-bge-m3-8192": Shape("sentencepiece.bge_m3"),
    "xlmr-bge-m3-pickle-only": Shape(
        "sentencepiece.bge_m3_pickle", refused=("pytorch_model.bin", "--convert-pickle")
    ),
    "xlmr-bge-m3-converted": Shape(
        "sentencepiece.bge_m3_pickle", convert_pickle=True, resaved_refused=None
    ),
    "xlmr-arctic-l-v2": Shape("sentencepiece.arctic_l_v2"),
    "camembert": Shape("sentencepiece.camembert"),
    "camembert-514": Shape(
        "sentencepiece.camembert_514",
        refused=("514", "max_tokens = 512"),
        resaved_refused=("514", "max_tokens = 512"),
    ),
    "camembert-514-512": Shape("sentencepiece.camembert_514", wishes={"max_tokens": 512}),
    "albert": Shape("sentencepiece.albert"),
    "deberta-v3": Shape("sentencepiece.deberta_v3"),
    # Rotary encoders.
    "modernbert-gte": Shape("rotary.gte_modernbert"),
    "modernbert-nomic-mean": Shape("rotary.modernbert_embed"),
    "modernbert-mmbert-gemma-tokenizer": Shape("rotary.mmbert"),
    "modernbert-granite-r2-512": Shape("rotary.granite_r2", wishes={"max_tokens": 512}),
    "nomic-v15": Shape("rotary.nomic_v15", native="nomic", wishes=_NOMIC_15),
    "nomic-arctic-m-long": Shape("rotary.arctic_m_long", native="nomic-arctic"),
    "nomic-coderankembed": Shape("rotary.coderankembed", native="nomic"),
    "nomic-v2-moe": _not_loaded(
        "rotary.nomic_v2_moe", "config.json", "moe_every_n_layers", native="nomic-moe"
    ),
    "gte-new": Shape("rotary.gte_new", native="gte-multilingual"),
    "gte-new-en": Shape("rotary.gte_en", native="gte-en"),
    "gte-arctic-m-v2": Shape("rotary.arctic_m_v2", native="gte-arctic"),
    "jina-v3": Shape("rotary.jina_v3", native="jina-v3", wishes={"task": "text-matching"}),
    "jina-v2": _not_loaded("rotary.jina_v2", "config.json", "attn_implementation"),
    # Decoders.
    "qwen3-embedding": Shape("decoders.qwen3"),
    "qwen2-gte-kalm": Shape("decoders.kalm"),
    "qwen2-both-ways": Shape("decoders.both_ways"),
    "qwen2-remote-stella-gte": _not_loaded("decoders.stella", "config.json", "auto_map"),
    "mistral-e5": Shape("decoders.mistral"),
    "llama-scaled": Shape("decoders.llama"),
    "eurobert": Shape("decoders.eurobert", by_today=True),
    "ministral": Shape("decoders.ministral", by_today=True),
    "ministral3": Shape("decoders.ministral3", by_today=True),
    "gemma": Shape("decoders.gemma"),
    "embeddinggemma": Shape("decoders.embeddinggemma"),
    "gemma3-harrier-270m": Shape("decoders.harrier"),
    "gemma3-other-thetas": Shape("decoders.gemma3_other_thetas"),
    "gemma2-bge-multilingual": Shape("decoders.gemma2"),
    # Others.
    "t5-gtr": Shape("sentencepiece.gtr"),
    "t5-gated": Shape("sentencepiece.t5_gated"),
    "mt5": Shape("sentencepiece.mt5"),
    "umt5": Shape("sentencepiece.umt5"),
    "static-retrieval-mrl": Shape("others.static_mrl"),
    "potion-base-8m": Shape("others.potion"),
    # Refused.
    "instructor": _not_loaded(
        "sentencepiece.instructor", "1_Pooling/config.json", "include_prompt"
    ),
    "clip-vit-b32": _not_loaded("others.clip", "modules.json", "CLIPModel"),
    "router-leaf-asym": _not_loaded("others.router", "modules.json", "Router"),
    "splade": _not_loaded("others.sparse", "modules.json", "MLMTransformer"),
    "slow-tokenizer-phobert-bertjapanese": _not_loaded("others.slow_tokenizer", "tokenizer.json"),
    "plain-transformers-contriever-sapbert": _not_loaded(
        "others.plain_transformers", "modules.json"
    ),
    "bert-unknown-key": _not_loaded("others.unknown_key", "config.json", "attention_temperature"),
    "bert-extra-tensor": _not_loaded(
        "others.extra_tensor", "model.safetensors", "encoder.layer.0.gate.weight"
    ),
}

# What `make test` looks at: a tokenizer and a graph of each kind, in half a minute.
SAMPLE = (
    "bert-unigram-multilingual-minilm",
    "modernbert-mmbert-gemma-tokenizer",
    "gemma3-other-thetas",
    "t5-gtr",
    "camembert-514",
)
