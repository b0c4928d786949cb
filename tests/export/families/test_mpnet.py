"""MPNet's graph against transformers: the bias by distance, positions from the ids, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedserve.errors import StartupError
from export.families.mpnet import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1010,
}


def mpnet(directory: Path, model_class: Any = None, **options: Any) -> Path:
    """The bias by distance is drawn ten times as large as other weights: each bucket shows."""
    checkpoints.write(directory, hf.MPNetConfig(**SIZE | options), model_class)
    prefix = "mpnet." if model_class else ""
    bias = torch.randn((32, 2), generator=torch.Generator().manual_seed(3))
    name = f"{prefix}encoder.relative_attention_bias.weight"
    checkpoints.edit_weights(directory, **{name: bias})
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mpnet(tmp_path_factory.mktemp("mpnet"))


@pytest.mark.parametrize(
    "options", [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}], ids=["plain", "other"]
)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(mpnet(tmp_path, **options), FAMILIES)


def test_bits_in_company(plain: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(plain, FAMILIES), VOCABULARY)


def test_pad_token_is_one_whatever_the_file_says(tmp_path: Path) -> None:
    """transformers takes 1 for MPNet's padding; a token 1 inside a text has no position."""
    mpnet(tmp_path, pad_token_id=0)
    texts = [np.array([0, 7, 1, 9, 1, 8, 2]), np.array([0, 0, 7, 2])]
    together = checkpoints.Graph(tmp_path, FAMILIES).run(*texts)
    for found, want in zip(together, checkpoints.expected(tmp_path, texts), strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [hf.MPNetForMaskedLM, hf.MPNetForSequenceClassification])
def test_head_is_ignored(tmp_path: Path, model_class: Any) -> None:
    checkpoints.assert_equal(mpnet(tmp_path, model_class), FAMILIES, [3, 20])


def test_refused(tmp_path: Path) -> None:
    mpnet(tmp_path)
    checkpoints.edit_config(tmp_path, relative_attention_num_buckets=16)
    with pytest.raises(StartupError, match="relative_attention_num_buckets = 16"):
        checkpoints.build(tmp_path, FAMILIES)
    checkpoints.edit_config(tmp_path, relative_attention_num_buckets=32)
    checkpoints.edit_weights(tmp_path, **{"encoder.layer.0.attention.attn.r.bias": torch.zeros(2)})
    with pytest.raises(StartupError, match="no place for"):
        checkpoints.build(tmp_path, FAMILIES)
    checkpoints.edit_weights(tmp_path, **{"encoder.relative_attention_bias.weight": None})
    with pytest.raises(StartupError, match="is missing"):
        checkpoints.build(tmp_path, FAMILIES)
