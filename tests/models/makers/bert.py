"""BERT and its relatives with WordPiece: BERT, DistilBERT, MPNet, ELECTRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.models import vocabularies
from tests.models.checkpoint_files import (
    HIDDEN,
    IDENTITY,
    SIZE,
    TANH,
    Dense,
    Modules,
    edit_weights,
    hf,
    write_model,
    write_tokenizer,
)

QUERY = "Represent this sentence for searching relevant passages: "


def tokenizer(directory: Path, lower: bool = True, limit: int = 512) -> int:
    return write_tokenizer(
        directory,
        vocabularies.wordpiece(lower),
        "BertTokenizerFast",
        do_lower_case=lower,
        model_max_length=limit,
    )


def bert(directory: Path, lower: bool = True, limit: int = 512, **model: Any) -> None:
    """BERT's model and tokenizer; `model` as write_model takes it."""
    size = tokenizer(directory, lower, limit)
    write_model(directory, hf.BertConfig(vocab_size=size, **SIZE), **model)


def minilm(directory: Path) -> None:
    """all-MiniLM-L6-v2 and many after it: a range of positions is stored as a tensor."""
    hub = {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
    }
    bert(directory, hub=hub)
    positions = {"embeddings.position_ids": torch.arange(512)[None]}
    edit_weights(directory / "model.safetensors", **positions)
    Modules("mean_tokens", 256).write(directory)


def bge(directory: Path) -> None:
    """bge-*-en-v1.5: cls, lower case twice."""
    bert(directory, hub={"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}})
    Modules("cls_token", 512, lower=True).write(directory)


def mxbai(directory: Path) -> None:
    """mxbai-embed-large-v1: float16, prompts, no Normalize."""
    bert(directory, dtype=torch.float16, hub={"use_cache": False})
    prompts = {"query": QUERY, "passage": ""}
    Modules("cls_token", 512, normalize=False, prompts=prompts).write(directory)


def labse(directory: Path) -> None:
    """LaBSE: keys of Google's pooler, cased, a Dense with Tanh."""
    hub = {
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
    }
    bert(directory, lower=False, limit=256, hub=hub)
    dense = Dense(HIDDEN, HIDDEN, TANH, bias=True)
    Modules("cls_token", 256, [dense]).write(directory)


def with_head(directory: Path) -> None:
    """A BERT saved with its language model's head: every name has a prefix."""
    bert(directory, model_class=hf.BertForMaskedLM)
    Modules("mean_tokens", 384).write(directory)


def several_modes(directory: Path) -> None:
    """Pooling that concatenates, and no limit but the tokenizer's."""
    from tests.models.checkpoint_files import edit_json

    bert(directory, limit=128)
    Modules("cls_token", None, normalize=False).write(directory)
    edit_json(directory / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)


def distilbert(directory: Path, modules: Modules) -> None:
    kinds = {"do_lower_case": False, "model_max_length": 512}
    tokenizer = vocabularies.wordpiece(lower=False)
    size = write_tokenizer(directory, tokenizer, "DistilBertTokenizerFast", **kinds)
    own = {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
    write_model(directory, hf.DistilBertConfig(vocab_size=size, **own))
    modules.write(directory)


def msmarco(directory: Path) -> None:
    distilbert(directory, Modules("mean_tokens", 512, normalize=False))


def distiluse(directory: Path) -> None:
    dense = Dense(HIDDEN, 48, TANH, bias=True)
    distilbert(directory, Modules("mean_tokens", 128, [dense], normalize=False))


def clip_text(directory: Path) -> None:
    """clip-ViT-B-32-multilingual-v1, the text side."""
    dense = Dense(HIDDEN, 48, IDENTITY, bias=False)
    distilbert(directory, Modules("mean_tokens", 128, [dense], normalize=False))


def mpnet(directory: Path) -> None:
    """all-mpnet-base-v2."""
    tokenizer = vocabularies.wordpiece(special=vocabularies.MPNET)
    size = write_tokenizer(directory, tokenizer, "MPNetTokenizerFast", model_max_length=512)
    write_model(directory, hf.MPNetConfig(vocab_size=size, max_position_embeddings=514, **SIZE))
    Modules("mean_tokens", 384).write(directory)


def electra(directory: Path) -> None:
    tokenizer = vocabularies.wordpiece()
    size = write_tokenizer(directory, tokenizer, "ElectraTokenizerFast", model_max_length=512)
    write_model(directory, hf.ElectraConfig(vocab_size=size, embedding_size=32, **SIZE))
    Modules("mean_tokens", 128).write(directory)


def ernie(directory: Path) -> None:
    """ERNIE 3.0 and its fine-tunes: BERT's numbers under a name of its own."""
    size = tokenizer(directory)
    write_model(directory, hf.ErnieConfig(vocab_size=size, **SIZE))
    Modules("mean_tokens", 256).write(directory)
