"""jina_embeddings_v3's graph against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embedserve.errors import StartupError
from export.families.jina_v3 import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two-types": {"type_vocab_size": 2, "layer_norm_eps": 1e-3},
    "linear": {"rope_parameters": LINEAR},
    "gelu-tanh": {"hidden_act": "gelu_new"},
}


def jina(directory: Path, model_class: Any = None, **options: Any) -> Path:
    return checkpoints.write(directory, hf.JinaEmbeddingsV3Config(**SIZE | options), model_class)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jina(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(jina(tmp_path, **options), FAMILIES)


def test_names_do_not_matter(plain: Path, tmp_path: Path) -> None:
    """The hub's names of tensors and transformers' are one model."""
    hf.AutoModel.from_pretrained(plain).save_pretrained(tmp_path, save_original_format=False)
    texts = checkpoints.sequences(VOCABULARY, (3, 600))
    first, second = (checkpoints.Graph(d, FAMILIES).run(*texts) for d in (plain, tmp_path))
    for one, two in zip(first, second, strict=True):
        assert one.tobytes() == two.tobytes()


def test_files_with_a_head(tmp_path: Path) -> None:
    checkpoints.assert_equal(jina(tmp_path, hf.JinaEmbeddingsV3ForMaskedLM), FAMILIES)


def test_bits_in_company(plain: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(plain, FAMILIES), VOCABULARY)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_full_attention_matrix(plain: Path) -> None:
    """At 8,192 tokens and 2 heads a full matrix would be 512 MiB."""
    assert checkpoints.peak_memory(checkpoints.build(plain, FAMILIES), 8192) < 150


REFUSED: list[tuple[str, Any]] = [
    ("something_new", 3),
    ("hidden_act", "tanh"),
    ("lora_rank", 4),
    ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[key for key, _ in REFUSED])
def test_refused_key(tmp_path: Path, key: str, value: Any) -> None:
    checkpoints.edit_config(jina(tmp_path), **{key: value})
    with pytest.raises(StartupError, match=rf"config\.json: .*{key}"):
        checkpoints.build(tmp_path, FAMILIES)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("encoder.layers.1.mlp.fc1.bias", None),
    ("encoder.layers.0.mixer.Wqkv.parametrizations.weight.0.lora_A", torch.ones(5, 4, 64)),
]


@pytest.mark.parametrize(("name", "tensor"), TENSORS, ids=["missing", "adapter"])
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    checkpoints.edit_weights(jina(tmp_path), **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)
