"""Encoders whose tokenizers come from SentencePiece: XLM-R, CamemBERT, ALBERT, DeBERTa, T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.models import sentencepieces, vocabularies
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

KINDS = sentencepieces.KINDS
ROBERTA = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}


def multilingual_minilm(directory: Path) -> None:
    """multilingual-e5-small and others: a BERT with XLM-R's tokenizer."""
    size = sentencepieces.save(directory, KINDS["xlm-roberta"], model_max_length=512)
    hub = {"tokenizer_class": "XLMRobertaTokenizer", "gradient_checkpointing": False}
    write_model(directory, hf.BertConfig(vocab_size=size, **SIZE), hub=hub)
    Modules("mean_tokens", 128, normalize=False).write(directory)


def xlm_roberta(directory: Path, modules: Modules, positions: int = 514) -> None:
    kind = KINDS["xlm-roberta"]
    size = sentencepieces.save(directory, kind, model_max_length=modules.limit)
    config = hf.XLMRobertaConfig(
        vocab_size=size, max_position_embeddings=positions, **ROBERTA, **SIZE
    )
    write_model(directory, config, hub={"output_past": True})
    modules.write(directory)


def e5(directory: Path) -> None:
    xlm_roberta(directory, Modules("mean_tokens", 512))


def bge_m3(directory: Path) -> None:
    """bge-m3's files converted to safetensors."""
    xlm_roberta(directory, Modules("cls_token", 8192), 8194)


def bge_m3_pickle(directory: Path) -> None:
    """bge-m3 as it is on the hub: the weights are a pickle."""
    bge_m3(directory)
    weights = directory / "model.safetensors"
    torch.save(load_file(weights), directory / "pytorch_model.bin")
    weights.unlink()


def arctic_l_v2(directory: Path) -> None:
    xlm_roberta(directory, Modules("cls_token", 8192, prompts={"query": "query: "}), 8194)


def roberta(directory: Path, limit: int | None, **tokenizer: Any) -> None:
    vocabulary = vocabularies.byte_bpe(vocabularies.ROBERTA)
    size = write_tokenizer(directory, vocabulary, "RobertaTokenizerFast", **tokenizer)
    config = hf.RobertaConfig(vocab_size=size, max_position_embeddings=514, **ROBERTA, **SIZE)
    write_model(directory, config)
    Modules("mean_tokens", limit).write(directory)


def distilroberta(directory: Path) -> None:
    roberta(directory, 512, model_max_length=512)


def roberta_without_limit(directory: Path) -> None:
    """Cut at 514 by sentence-transformers, with positions for 512."""
    roberta(directory, None)


def camembert(directory: Path, limit: int = 512) -> None:
    size = sentencepieces.save(directory, KINDS["camembert"], model_max_length=512)
    config = hf.CamembertConfig(
        vocab_size=size, max_position_embeddings=514, type_vocab_size=1, **SIZE
    )
    write_model(directory, config)
    Modules("mean_tokens", limit, normalize=False).write(directory)


def camembert_514(directory: Path) -> None:
    """sentence-camembert-base: a limit of 514, and positions for 512."""
    camembert(directory, 514)


def albert(directory: Path) -> None:
    """paraphrase-albert-small-v2."""
    kind = KINDS["albert"]
    size = sentencepieces.save(directory, kind, do_lower_case=True, model_max_length=512)
    config = hf.AlbertConfig(
        vocab_size=size,
        embedding_size=32,
        hidden_act="gelu_new",
        max_position_embeddings=512,
        **SIZE,
    )
    write_model(directory, config)
    Modules("mean_tokens", 100, normalize=False).write(directory)


def deberta_v3(directory: Path) -> None:
    kind = KINDS["deberta-v2"]
    size = sentencepieces.save(directory, kind, do_lower_case=False, model_max_length=512)
    own = {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "position_biased_input": False,
    }
    write_model(directory, hf.DebertaV2Config(vocab_size=size, **own, **SIZE))
    Modules("mean_tokens", 512, normalize=False).write(directory)


def t5(directory: Path, **config: Any) -> None:
    size = sentencepieces.save(directory, KINDS["t5"], extra_ids=10, model_max_length=512)
    own = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    hub = {"architectures": ["T5EncoderModel"], "is_encoder_decoder": True}
    made = hf.T5Config(vocab_size=size, **own, **config)
    write_model(directory, made, hf.T5EncoderModel, hub=hub)


def gtr(directory: Path) -> None:
    """gtr-t5 and sentence-t5: a Dense without bias."""
    t5(directory)
    dense = Dense(HIDDEN, HIDDEN, IDENTITY, bias=False)
    Modules("mean_tokens", 512, [dense]).write(directory)


def t5_gated(directory: Path) -> None:
    """An encoder of T5 1.1: a gated feed-forward part."""
    t5(directory, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    Modules("mean_tokens", 256).write(directory)


def instructor(directory: Path) -> None:
    """instructor-*: the instruction is left out of pooling."""
    gtr(directory)
    edit_json(directory / "1_Pooling" / "config.json", include_prompt=False)


def data2vec(directory: Path) -> None:
    """data2vec's text model, built as RoBERTa."""
    vocabulary = vocabularies.byte_bpe(vocabularies.ROBERTA)
    size = write_tokenizer(directory, vocabulary, "RobertaTokenizerFast", model_max_length=512)
    config = hf.Data2VecTextConfig(vocab_size=size, max_position_embeddings=514, **ROBERTA, **SIZE)
    write_model(directory, config)
    Modules("mean_tokens", 256).write(directory)


def mt5(directory: Path) -> None:
    """An encoder of mT5: positions are the first layer's alone."""
    _multilingual_t5(directory, hf.MT5Config, hf.MT5EncoderModel)


def umt5(directory: Path) -> None:
    """An encoder of UMT5: each layer has positions of its own."""
    _multilingual_t5(directory, hf.UMT5Config, hf.UMT5EncoderModel)


def _multilingual_t5(directory: Path, config: Any, model_class: Any) -> None:
    size = sentencepieces.save(directory, KINDS["t5"], extra_ids=10, model_max_length=512)
    own = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    write_model(directory, config(vocab_size=size, **own), model_class)
    Modules("mean_tokens", 512).write(directory)
