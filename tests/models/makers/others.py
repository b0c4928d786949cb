"""What is no transformer, and what is no model that can be served."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models import vocabularies
from tests.models.checkpoint_files import (
    HIDDEN,
    Modules,
    edit_json,
    write_json,
    write_modules,
    write_versions,
)
from tests.models.makers import bert


def static_mrl(directory: Path) -> None:
    """static-retrieval-mrl-en-v1: a table of vectors, in a folder of its own."""
    _static(directory, "0_StaticEmbedding", "embedding.weight")
    write_modules(directory, [("0_StaticEmbedding", "StaticEmbedding")])
    write_versions(directory, {})


def potion(directory: Path) -> None:
    """potion-base-8M: model2vec's files, in the model's own folder."""
    _static(directory, ".", "embeddings")
    write_modules(directory, [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")])
    write_versions(directory, {})
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "tokenizer_name": "baai/bge-base-en-v1.5",
        "apply_pca": 256,
        "apply_zipf": True,
        "hidden_dim": 256,
        "seq_length": 1000000,
        "normalize": True,
    }
    write_json(directory / "config.json", config)


def _static(directory: Path, folder: str, tensor: str) -> None:
    tokenizer = vocabularies.wordpiece()
    (directory / folder).mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(tokenizer.get_vocab_size(), HIDDEN, generator=draw)
    save_file({tensor: table}, directory / folder / "model.safetensors")
    tokenizer.save(str(directory / folder / "tokenizer.json"))


def clip(directory: Path) -> None:
    directory.mkdir(parents=True)
    write_modules(directory, [("0_CLIPModel", "CLIPModel")])


def router(directory: Path) -> None:
    """mdbr-leaf-ir-asym: queries and documents go different ways."""
    bert.minilm(directory)
    write_modules(directory, [("", "Router")])


def slow_tokenizer(directory: Path) -> None:
    """PhoBERT, BertJapanese: no tokenizer.json."""
    bert.minilm(directory)
    (directory / "tokenizer.json").unlink()
    edit_json(directory / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer")


def plain_transformers(directory: Path) -> None:
    """contriever, SapBERT: no file of sentence-transformers."""
    bert.bert(directory)


def sparse(directory: Path) -> None:
    """splade: the head is a module of its own."""
    bert.with_head(directory)
    write_modules(directory, [("", "MLMTransformer"), ("1_SpladePooling", "SpladePooling")])


def unknown_key(directory: Path) -> None:
    """A key that no code here knows."""
    bert.bert(directory, hub={"attention_temperature": 0.5})
    Modules("mean_tokens", 128).write(directory)


def extra_tensor(directory: Path) -> None:
    """A tensor that no code here reads."""
    from tests.models.checkpoint_files import edit_weights

    bert.minilm(directory)
    edit_weights(
        directory / "model.safetensors", **{"encoder.layer.0.gate.weight": torch.ones(2, 2)}
    )
