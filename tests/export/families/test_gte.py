"""gte's graph against transformers: files of the hub ("new") and of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedserve.errors import StartupError
from export.families.gte import FAMILIES, view
from export.families.rotary import frequencies
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
    "no-types": {"type_vocab_size": 0},
    "two-types": {"type_vocab_size": 2, "layer_norm_eps": 1e-3},
    "linear": {"rope_parameters": LINEAR},
    "silu": {"hidden_act": "silu"},
}
CODE = "Alibaba-NLP/new-impl--"
# gte-multilingual-base's config.json on the hub, its sizes made small.
HUB = {
    **SIZE,
    "architectures": ["NewModel"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": f"{CODE}configuration.NewConfig",
        "AutoModel": f"{CODE}modeling.NewModel",
    },
    "classifier_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "model_type": "new",
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "torch_dtype": "float32",
    "transformers_version": "4.39.1",
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
# snowflake-arctic-embed-m-v2.0 says "gte" and has the same code beside it.
ARCTIC = HUB | {
    "model_type": "gte",
    "rope_scaling": None,
    "rope_theta": 160000,
    "unpad_inputs": "true",
}


def gte(directory: Path, model_class: Any = None, **options: Any) -> Path:
    return checkpoints.write(directory, hf.GteConfig(**SIZE | options), model_class)


def hub(directory: Path, config: dict[str, Any], **options: Any) -> Path:
    """A checkpoint with the hub's config.json; transformers saves weights by the hub's names."""
    gte(directory, **options)
    checkpoints.write_config(directory, config)
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gte(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(gte(tmp_path, **options), FAMILIES)


@pytest.mark.parametrize("config", [HUB, ARCTIC], ids=["new", "arctic"])
def test_files_of_the_hub(tmp_path: Path, config: dict[str, Any]) -> None:
    checkpoints.assert_equal(hub(tmp_path, config), FAMILIES)


@pytest.mark.parametrize("factor", [2.0, 8.0, 1])
def test_scaled_positions_are_the_hubs(factor: float) -> None:
    """NTK scaling as the hub's code computes it: theta times factor, less factor ** (2 / d)."""
    seen = view(HUB | {"rope_scaling": {"type": "ntk", "factor": factor}})
    assert seen is not None
    config = hf.GteConfig.from_dict(seen)
    found, scale = frequencies(config, config.rope_parameters, 32, "")
    exponents = np.arange(0, 32, 2) / 32
    expected = (20000 * factor) ** -exponents / factor ** (2 / 32)
    np.testing.assert_allclose(found, expected, rtol=5e-7)
    assert scale == 1.0


def test_bits_in_company(plain: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(plain, FAMILIES), VOCABULARY)


def test_names_do_not_matter(plain: Path, tmp_path: Path) -> None:
    """The hub's names of tensors and transformers' are one model."""
    other = tmp_path / "other"
    model = hf.AutoModel.from_pretrained(plain)
    model.save_pretrained(other, save_original_format=False)
    texts = checkpoints.sequences(VOCABULARY, (3, 600))
    first, second = (checkpoints.Graph(d, FAMILIES).run(*texts) for d in (plain, other))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("prefix", ["gte", "new"])
def test_files_with_a_head(tmp_path: Path, prefix: str) -> None:
    gte(tmp_path, hf.GteForMaskedLM)
    checkpoints.rename_weights(tmp_path, {"gte.": f"{prefix}."})
    checkpoints.assert_equal(tmp_path, FAMILIES)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_full_attention_matrix(plain: Path) -> None:
    """At 8,192 tokens and 2 heads a full matrix would be 512 MiB."""
    graph = checkpoints.build(plain, FAMILIES)
    assert checkpoints.peak_memory(graph, 8192) < 150


REFUSED: list[tuple[str, Any]] = [
    ("something_new", 3),
    ("logn_attention_scale", True),
    ("logn_attention_clip1", True),
    ("layer_norm_type", "rms_norm"),
    ("position_embedding_type", "absolute"),
    ("pack_qkv", False),
    ("hidden_act", "tanh"),
    ("rope_theta", None),
    ("rope_scaling", {"type": "ntk", "factor": 8.0, "mixed_b": 0.6}),
    ("rope_scaling", {"type": "dynamic", "factor": 8.0}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 20000.0}),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v}"[:50] for k, v in REFUSED])
def test_refused_key(tmp_path: Path, key: str, value: Any) -> None:
    hub(tmp_path, HUB | {key: value})
    with pytest.raises(StartupError, match=rf"config\.json: .*{key}"):
        checkpoints.build(tmp_path, FAMILIES)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("encoder.layer.1.attn_ln.weight", None),
    ("encoder.layer.1.mlp.up_gate_proj.bias", torch.ones(192)),
    ("encoder.layer.2.attn_ln.weight", torch.ones(64)),
]


@pytest.mark.parametrize(("name", "tensor"), TENSORS, ids=["missing", "bias", "layer"])
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    gte(tmp_path)
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)
