"""ALBERT's graph against transformers: groups of layers, layers within a group, files of old."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embedserve.errors import StartupError
from export.families.albert import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "embedding_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 1010,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "one-group": {},
    "two-groups": {"num_hidden_groups": 2},
    "inner-layers": {"inner_group_num": 2, "hidden_act": "gelu"},
    "no-smaller-embedding": {"embedding_size": 32},
}


def albert(directory: Path, model_class: Any = None, **options: Any) -> Path:
    return checkpoints.write(directory, hf.AlbertConfig(**SIZE | options), model_class)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(albert(tmp_path, **options), FAMILIES)


def test_bits_in_company(tmp_path: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(albert(tmp_path), FAMILIES), VOCABULARY)


@pytest.mark.parametrize(
    "model_class", [hf.AlbertForPreTraining, hf.AlbertForMaskedLM, hf.AlbertForTokenClassification]
)
def test_head_is_ignored(tmp_path: Path, model_class: Any) -> None:
    """Files that were saved with a head, with the keys of the original's."""
    albert(tmp_path, model_class)
    keys = {
        "down_scale_factor": 1,
        "gap_size": 0,
        "layers_to_keep": [],
        "net_structure_type": 0,
        "num_memory_blocks": 0,
    }
    checkpoints.edit_config(tmp_path, **keys)
    checkpoints.assert_equal(tmp_path, FAMILIES, [3, 20])


def test_refused(tmp_path: Path) -> None:
    albert(tmp_path)
    group = "encoder.albert_layer_groups.1.albert_layers.0.ffn.bias"
    checkpoints.edit_weights(tmp_path, **{group: torch.zeros(48)})
    with pytest.raises(StartupError, match="no place for"):
        checkpoints.build(tmp_path, FAMILIES)
    checkpoints.edit_weights(
        tmp_path, **{group: None, "encoder.embedding_hidden_mapping_in.bias": None}
    )
    with pytest.raises(StartupError, match="is missing"):
        checkpoints.build(tmp_path, FAMILIES)
    checkpoints.edit_config(tmp_path, position_embedding_type="relative_key_query")
    with pytest.raises(StartupError, match="relative_key_query"):
        checkpoints.build(tmp_path, FAMILIES)
