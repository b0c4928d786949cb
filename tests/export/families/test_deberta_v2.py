"""DeBERTa v2 and v3 against transformers: each term of its scores, buckets, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from embedserve.errors import StartupError
from export import weights_file
from export.families.deberta_v2 import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3-large-buckets": {"position_buckets": 256, "max_position_embeddings": 512},
    "own-products": {"share_att_key": False},
    "c2p": {"pos_att_type": ["c2p"]},
    "p2c": {"pos_att_type": ["p2c"], "share_att_key": False},
    "no-norm": {"norm_rel_ebd": "none"},
    "no-buckets": {"position_buckets": -1, "max_relative_positions": 50},
    "longest": {"max_relative_positions": 300},
    "types": {"type_vocab_size": 2, "hidden_act": "gelu_new"},
}


def deberta(directory: Path, model_class: Any = None, **options: Any) -> Path:
    return checkpoints.write(directory, hf.DebertaV2Config(**SIZE | options), model_class)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    """Also for texts of one token, and of more than the longest distance."""
    checkpoints.assert_equal(deberta(tmp_path, **options), FAMILIES, [1, 2, 3, 40, 17, 130, 520])


def test_shared_tables_are_of_embeddings(tmp_path: Path) -> None:
    """What sessions share is read as floats: the indexes of distances must not be among it."""
    options = {"position_buckets": 256, "max_position_embeddings": 512}
    path = checkpoints.build(deberta(tmp_path, **options), FAMILIES)
    graph = onnx.load(path, load_external_data=False).graph
    indexes = {tensor.name for tensor in graph.initializer if tensor.external_data}
    assert "distances_1.rows" in indexes
    shared = [table.name for table in weights_file.tables(graph, "fp32")]
    assert shared == ["embeddings.word_embeddings.weight"]


def test_bits_in_company(tmp_path: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(deberta(tmp_path), FAMILIES), VOCABULARY)


@pytest.mark.parametrize(
    "model_class", [hf.DebertaV2ForMaskedLM, hf.DebertaV2ForSequenceClassification]
)
def test_head_is_ignored(tmp_path: Path, model_class: Any) -> None:
    checkpoints.assert_equal(deberta(tmp_path, model_class), FAMILIES, [3, 20])


def test_positions_of_the_hub_are_ignored(tmp_path: Path) -> None:
    """v3's files have a table that transformers ignores where position_biased_input is false."""
    deberta(tmp_path)
    table = torch.zeros(128, 32)
    checkpoints.edit_weights(tmp_path, **{"embeddings.position_embeddings.weight": table})
    checkpoints.assert_equal(tmp_path, FAMILIES, [3, 20])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_biased_input": True}, "position_biased_input = True"),
        ({"relative_attention": False}, "relative_attention = False"),
        ({"pos_att_type": None}, "pos_att_type = None"),
        ({"conv_kernel_size": 3}, "conv_kernel_size = 3"),
        ({"embedding_size": 16}, "'embedding_size' .* is unknown"),
        ({"max_relative_positions": 17}, "position_buckets = 32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_configuration(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoints.edit_config(deberta(tmp_path), **changes)
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)


@pytest.mark.parametrize("key", ["position_biased_input", "relative_attention"])
def test_missing_key_has_its_default(tmp_path: Path, key: str) -> None:
    """A key that is not there means what it means to transformers: here, what is refused."""
    deberta(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config[key]
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(StartupError, match=key):
        checkpoints.build(tmp_path, FAMILIES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder.rel_embeddings.weight", None, "is missing"),
        ("encoder.LayerNorm.bias", None, "is missing"),
        ("encoder.conv.conv.weight", torch.zeros(3), "no place for"),
    ],
    ids=["distances", "norm", "convolution"],
)
def test_refused_tensors(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    checkpoints.edit_weights(deberta(tmp_path), **{name: tensor})
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)
