"""ModernBERT's graph against transformers: local and global layers, biases, thetas, old files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embedserve.artifact import GRAPH, WEIGHTS
from embedserve.errors import StartupError
from export.families.modernbert import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "local_attention": 16,
    **dict.fromkeys(
        ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 0
    ),
}
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 4.0},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
    "norm-bias": {"norm_bias": True, "norm_eps": 1e-3},
    "odd-window": {"local_attention": 11},
    "layer-types": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "only-local": {"layer_types": ["sliding_attention"] * 4},
    "only-global": {"layer_types": ["full_attention"] * 4},
    "thetas": {"rope_parameters": ROPES},
    "relu": {"hidden_activation": "relu"},
}


def modernbert(directory: Path, model_class: Any = None, **options: Any) -> Path:
    return checkpoints.write(directory, hf.ModernBertConfig(**SIZE | options), model_class)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modernbert(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(modernbert(tmp_path, **options), FAMILIES)


def test_bits_in_company(plain: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(plain, FAMILIES), VOCABULARY)


def test_files_of_transformers_4(tmp_path: Path) -> None:
    """global_rope_theta, local_rope_theta and global_attn_every_n_layers, as 4.57 wrote them."""
    modernbert(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for key in ("rope_parameters", "layer_types"):
        del config[key]
    path.write_text(json.dumps(config), "utf-8")
    old = {
        "global_rope_theta": 700.0,
        "local_rope_theta": 90.0,
        "global_attn_every_n_layers": 2,
        "reference_compile": False,
        "repad_logits_with_grad": False,
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-5,
        "gradient_checkpointing": False,
        "torch_dtype": "float32",
    }
    checkpoints.edit_config(tmp_path, **old)
    read = hf.AutoConfig.from_pretrained(tmp_path)
    assert read.layer_types == ["full_attention", "sliding_attention"] * 2
    assert read.rope_parameters["sliding_attention"]["rope_theta"] == 90.0
    checkpoints.assert_equal(tmp_path, FAMILIES)


@pytest.mark.parametrize("head", ["ModernBertForMaskedLM", "ModernBertForSequenceClassification"])
def test_files_with_a_head(tmp_path: Path, head: str) -> None:
    """Names begin with "model.", and the head's tensors are left alone."""
    checkpoints.assert_equal(modernbert(tmp_path, getattr(hf, head)), FAMILIES)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_full_attention_matrix(plain: Path) -> None:
    """At 8,192 tokens and 2 heads a full matrix would be 512 MiB."""
    graph = checkpoints.build(plain, FAMILIES)
    assert checkpoints.peak_memory(graph, 8192) < 150


REFUSED: list[tuple[str, Any]] = [
    ("something_new", 3),
    ("hidden_activation", "tanh"),
    ("position_embedding_type", "relative_key"),
    ("is_decoder", True),
    ("local_attention", 1),
    ("layer_types", ["sliding_attention", "chunked_attention"] * 2),
    ("rope_parameters", ROPES | {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}),
    (
        "rope_parameters",
        ROPES | {"full_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v}"[:50] for k, v in REFUSED])
def test_refused_key(tmp_path: Path, key: str, value: Any) -> None:
    modernbert(tmp_path)
    checkpoints.edit_config(tmp_path, **{key: value})
    with pytest.raises(StartupError, match=rf"config\.json: .*{key}"):
        checkpoints.build(tmp_path, FAMILIES)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("layers.1.attn_norm.weight", None),
    ("layers.0.attn_norm.weight", torch.ones(32)),
    ("layers.1.mlp.Wi.bias", torch.ones(96)),
    ("layers.2.attn.Wqkv.weight", torch.ones(64, 32)),
]


@pytest.mark.parametrize(("name", "tensor"), TENSORS, ids=["missing", "extra", "bias", "shape"])
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    modernbert(tmp_path)
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    graphs = [checkpoints.build(modernbert(tmp_path / str(n)), FAMILIES) for n in range(2)]
    for name in (GRAPH, WEIGHTS):
        first, second = (graph.with_name(name).read_bytes() for graph in graphs)
        assert first == second
