"""Gemma 1, 2 and 3 against transformers: windows, both directions, bounds on scores, old files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedserve.errors import StartupError
from export.families.attention import LONGEST_MASKED
from export.families.gemma import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
TYPES = ["sliding_attention", "full_attention"]
WINDOW = {"sliding_window": 20, "layer_types": TYPES, "query_pre_attn_scalar": 24}
BOTH_WAYS = {"use_bidirectional_attention": True}
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 90000.0, "factor": 8.0},
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {}),
    "gemma-gelu": ("Gemma", {"hidden_act": "gelu"}),
    "gemma-biases": ("Gemma", {"attention_bias": True, "num_key_value_heads": 4}),
    "gemma-bidirectional": ("Gemma", {"is_causal": False}),
    "gemma2": ("Gemma2", WINDOW),
    "gemma2-low-cap": ("Gemma2", WINDOW | {"attn_logit_softcapping": 0.5}),
    "gemma2-no-cap": ("Gemma2", WINDOW | {"attn_logit_softcapping": None}),
    "gemma2-biases": ("Gemma2", WINDOW | {"attention_bias": True}),
    "gemma2-bidirectional": (
        "Gemma2",
        WINDOW | {"attn_logit_softcapping": None, "is_causal": False},
    ),
    "gemma3": ("Gemma3Text", WINDOW),
    "gemma3-full": ("Gemma3Text", WINDOW | {"layer_types": ["full_attention"] * 2}),
    "gemma3-ropes": ("Gemma3Text", WINDOW | {"rope_parameters": ROPES}),
    "gemma3-biases": ("Gemma3Text", WINDOW | {"attention_bias": True}),
    "gemma3-gelu": ("Gemma3Text", WINDOW | {"hidden_activation": "gelu"}),
    "embeddinggemma": ("Gemma3Text", WINDOW | BOTH_WAYS),
    "embeddinggemma-odd": ("Gemma3Text", WINDOW | BOTH_WAYS | {"sliding_window": 21}),
    "embeddinggemma-512": ("Gemma3Text", WINDOW | BOTH_WAYS | {"sliding_window": 512}),
    "embeddinggemma-causal-said": ("Gemma3Text", WINDOW | BOTH_WAYS | {"is_causal": True}),
    "gemma3-is-causal-false": ("Gemma3Text", WINDOW | {"is_causal": False}),
    "gemma3-both-keys": ("Gemma3Text", WINDOW | BOTH_WAYS | {"is_causal": False}),
}


def gemma(directory: Path, name: str, model_class: Any = None, **options: Any) -> Path:
    kind, given = CONFIGS[name]
    config = getattr(hf, f"{kind}Config")(**SIZE | given | options)
    return checkpoints.write(directory, config, model_class)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(tmp_path: Path, name: str) -> None:
    checkpoints.assert_equal(gemma(tmp_path, name), FAMILIES)


def test_equals_transformers_past_the_whole_window(tmp_path: Path) -> None:
    """512 of EmbeddingGemma's files go in blocks past 1,024 tokens."""
    one_layer = {"num_hidden_layers": 1, "layer_types": TYPES[:1]}
    gemma(tmp_path, "embeddinggemma-512", **one_layer)
    checkpoints.assert_equal(tmp_path, FAMILIES, (1024, 1025, 1300))


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "embeddinggemma"])
def test_bits_in_company(tmp_path: Path, name: str) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(gemma(tmp_path, name), FAMILIES), VOCABULARY)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_bits_of_causal_texts_beside_any_other(tmp_path: Path, name: str) -> None:
    """One query more than whole blocks of the operator's: see export.families.even_length."""
    graph = checkpoints.Graph(gemma(tmp_path, name), FAMILIES)
    texts = checkpoints.sequences(VOCABULARY, [1, 17, 33, 129, 257, LONGEST_MASKED + 1, 600])
    for ids, beside in zip(texts, graph.run(*texts), strict=True):
        assert (graph.run(ids)[0] == beside).all()


def test_transformers_runs_gemma_2_eagerly(tmp_path: Path) -> None:
    """Only so are scores bounded; the bound is part of what this family promises."""
    implementation = "_attn_implementation"
    model = hf.AutoModel.from_pretrained(gemma(tmp_path, "gemma2"))
    assert getattr(model.config, implementation) == "eager"


@pytest.mark.parametrize("window", [20, 21, 512, 513])
def test_a_window_saved_again(tmp_path: Path, window: int) -> None:
    """A configuration holds half the window and one; saved, loaded and saved it stays."""
    gemma(tmp_path / "first", "embeddinggemma", sliding_window=window)
    held = hf.AutoConfig.from_pretrained(tmp_path / "first").sliding_window
    assert held == window // 2 + 1
    hf.AutoModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert hf.AutoConfig.from_pretrained(tmp_path / "second").sliding_window == held
    saved = json.loads((tmp_path / "second" / "config.json").read_text("utf-8"))
    assert saved["sliding_window"] == 2 * (window // 2)
    checkpoints.assert_equal(tmp_path / "second", FAMILIES, (3, 40, 17))


def without(directory: Path, *keys: str) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for key in keys:
        config.pop(key, None)
    path.write_text(json.dumps(config), "utf-8")


def test_gemma_3_of_transformers_4(tmp_path: Path) -> None:
    """rope_theta, rope_local_base_freq and rope_scaling; a pattern in place of layer_types."""
    gemma(tmp_path, "embeddinggemma")
    without(tmp_path, "rope_parameters", "layer_types")
    checkpoints.edit_config(
        tmp_path,
        rope_theta=90000.0,
        rope_local_base_freq=300.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=2,
        _sliding_window_pattern=2,
        final_logit_softcapping=None,
        cache_implementation="hybrid",
        torch_dtype="float32",
    )
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert config.layer_types == TYPES
    assert config.rope_parameters["sliding_attention"] == ROPES["sliding_attention"]
    assert config.rope_parameters["full_attention"] == ROPES["full_attention"]
    checkpoints.assert_equal(tmp_path, FAMILIES)


def test_gemma_2_as_on_the_hub(tmp_path: Path) -> None:
    gemma(tmp_path, "gemma2")
    without(tmp_path, "rope_parameters", "layer_types", "use_bidirectional_attention")
    checkpoints.edit_config(
        tmp_path,
        hidden_act="gelu_pytorch_tanh",
        sliding_window_size=20,
        cache_implementation="hybrid",
        rope_theta=300.0,
    )
    assert hf.AutoConfig.from_pretrained(tmp_path).layer_types == TYPES
    checkpoints.assert_equal(tmp_path, FAMILIES)


@pytest.mark.parametrize("head", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_files_with_a_head(tmp_path: Path, head: str) -> None:
    """Names begin with "model.", and the head is the embeddings."""
    gemma(tmp_path, "gemma3" if "3" in head else "gemma2", getattr(hf, head))
    assert "model.norm.weight" in load_file(tmp_path / "model.safetensors")
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["gemma2-no-cap", "embeddinggemma"])
def test_no_full_attention_matrix(tmp_path: Path, name: str) -> None:
    """At 8,192 tokens and 4 heads a full matrix would be 1,024 MiB."""
    graph = checkpoints.build(gemma(tmp_path, name), FAMILIES)
    assert checkpoints.peak_memory(graph, 8192) < 150


REFUSED: list[tuple[str, str, Any]] = [
    ("gemma", "something_new", 3),
    ("gemma", "use_bidirectional_attention", True),
    ("gemma", "hidden_activation", "relu"),
    ("gemma", "hidden_act", "tanh"),
    ("gemma2", "use_bidirectional_attention", True),
    ("gemma2", "is_causal", None),
    ("gemma2", "is_causal", False),  # and scores are bounded
    ("gemma2", "hidden_activation", "tanh"),
    ("gemma2", "sliding_window", None),
    ("gemma3", "attn_logit_softcapping", 50.0),
    ("gemma3", "layer_types", ["chunked_attention"] * 2),
    (
        "gemma3",
        "rope_parameters",
        ROPES | {"full_attention": {"rope_type": "dynamic", "factor": 2.0}},
    ),
    ("embeddinggemma", "sliding_window", 1),
    ("embeddinggemma", "sliding_window", 4096),
]


@pytest.mark.parametrize(
    ("name", "key", "value"), REFUSED, ids=[f"{n}-{k}={v}"[:60] for n, k, v in REFUSED]
)
def test_refused_key(tmp_path: Path, name: str, key: str, value: Any) -> None:
    gemma(tmp_path, name)
    checkpoints.edit_config(tmp_path, **{key: value})
    with pytest.raises(StartupError, match=rf"config\.json: .*{key}"):
        checkpoints.build(tmp_path, FAMILIES)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("layers.1.pre_feedforward_layernorm.weight", None),
    ("layers.0.self_attn.q_proj.bias", torch.ones(64)),
    ("layers.1.self_attn.v_norm.weight", torch.ones(16)),
    ("layers.1.mlp.up_proj.weight", torch.ones(32, 32)),
]


@pytest.mark.parametrize(("name", "tensor"), TENSORS, ids=["missing", "bias", "extra", "shape"])
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    gemma(tmp_path, "gemma3")
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)
