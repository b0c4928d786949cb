"""nomic_bert's graph against transformers: files of the hub, of transformers, and of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embedserve.errors import StartupError
from export.families.nomic_bert import FAMILIES, view
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf
from tests.reference.nomic_checkpoint import (
    REAL,
    Form,
    Size,
    hub_config,
    transformers_config,
    write_checkpoint,
)

SIZE: Size = (64, 64, 2, 2, 96)
VOCABULARY = SIZE[0]
OWN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}},
    "wide-heads": {"head_dim": 48},
    "one-type": {"type_vocab_size": 1, "layer_norm_eps": 1e-3},
    "gelu": {"hidden_act": "gelu"},
}
# What transformers takes for each when it does not know the hub's names.
NAMED = {"n_layer": 3, "rotary_emb_base": 50, "layer_norm_epsilon": 1e-3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    write_checkpoint(directory, "hub", SIZE, 3)
    return directory


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    checkpoints.assert_equal(
        checkpoints.write(tmp_path, hf.NomicBertConfig(**OWN | options)), FAMILIES
    )


@pytest.mark.parametrize("form", ["hub", "transformers"])
def test_forms(tmp_path: Path, form: Form) -> None:
    """The hub's names of keys and weights, and transformers'."""
    write_checkpoint(tmp_path, form, SIZE, 3)
    checkpoints.assert_equal(tmp_path, FAMILIES)


def test_forms_are_one_model(plain: Path, tmp_path: Path) -> None:
    """The same bits of either form, and of a config.json that has both sets of names."""
    write_checkpoint(tmp_path / "transformers", "transformers", SIZE, 3)
    write_checkpoint(tmp_path / "both", "hub", SIZE, 3)
    checkpoints.edit_config(tmp_path / "both", **transformers_config(SIZE))
    graphs = [
        checkpoints.build(path, FAMILIES)
        for path in (plain, tmp_path / "transformers", tmp_path / "both")
    ]
    first = checkpoints.Graph(plain, FAMILIES)
    for path in graphs[1:]:
        other = checkpoints.Graph(path.parent, FAMILIES)
        texts = checkpoints.sequences(VOCABULARY, (3, 40, 600))
        for one, two in zip(first.run(*texts), other.run(*texts), strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("head", ["NomicBertForMaskedLM"])
def test_files_with_a_head(tmp_path: Path, head: str) -> None:
    checkpoints.write(tmp_path, hf.NomicBertConfig(**OWN), getattr(hf, head))
    checkpoints.assert_equal(tmp_path, FAMILIES)


def test_view_says_what_the_file_says() -> None:
    """transformers reads no name of the hub's: without the view it takes its own defaults."""
    config = hub_config(SIZE) | NAMED
    ignored = hf.NomicBertConfig.from_dict(config)
    assert (ignored.num_hidden_layers, ignored.rope_parameters["rope_theta"]) == (12, 1000.0)
    seen = view(config)
    assert seen is not None
    read = hf.NomicBertConfig.from_dict(seen)
    found = (read.num_hidden_layers, read.rope_parameters["rope_theta"], read.layer_norm_eps)
    assert found == tuple(NAMED.values())
    assert (read.hidden_size, read.intermediate_size, read.vocab_size) == (64, 96, 64)


def test_view_of_transformers_own_files() -> None:
    assert view(transformers_config(SIZE)) is None


def test_bits_in_company(plain: Path) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(plain, FAMILIES), VOCABULARY)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_full_attention_matrix(plain: Path) -> None:
    """At 8,192 tokens and 2 heads a full matrix would be 512 MiB."""
    assert checkpoints.peak_memory(checkpoints.build(plain, FAMILIES), 8192) < 150


REFUSED: list[tuple[str, object]] = [
    ("activation_function", "gelu"),
    ("activation_function", None),
    ("prenorm", True),
    ("use_rms_norm", True),
    ("parallel_block", True),
    ("causal", True),
    ("qkv_proj_bias", True),
    ("mlp_fc1_bias", True),
    ("mlp_fc2_bias", True),
    ("rotary_emb_fraction", 0.5),
    ("rotary_emb_fraction", True),
    ("rotary_emb_interleaved", True),
    ("rotary_emb_scale_base", 512),
    ("rotary_scaling_factor", 2.0),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("scale_attn_weights", False),
    ("moe_every_n_layers", 2),
    ("num_experts", 8),
    ("num_heads_kv", 1),
    ("n_embd", "32"),
    ("n_layer", 0),
    ("rotary_emb_base", 0),
    ("rotary_emb_base", None),
    ("quantization_config", {"bits": 4}),
    ("something_new", 3),
    # Both names, and another value.
    ("hidden_size", 32),
    ("rope_theta", 10000),
    ("layer_norm_eps", 1e-5),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v}" for k, v in REFUSED])
def test_refused_key(tmp_path: Path, key: str, value: object) -> None:
    """The message names the key, and what was found."""
    write_checkpoint(tmp_path, "hub", SIZE, 3)
    checkpoints.edit_config(tmp_path, **{key: value})
    with pytest.raises(StartupError, match=rf"config\.json: .*{key}") as error:
        checkpoints.build(tmp_path, FAMILIES)
    assert repr(value) in str(error.value)


ROPE: list[dict[str, object]] = [
    {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0},
    {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
]


@pytest.mark.parametrize("rope", ROPE, ids=["dynamic", "partial"])
def test_refused_rope_parameters(tmp_path: Path, rope: dict[str, object]) -> None:
    write_checkpoint(tmp_path, "transformers", SIZE, 3)
    checkpoints.edit_config(tmp_path, rope_parameters=rope)
    with pytest.raises(StartupError, match=r"config\.json: rope_parameters: .*; accepted: "):
        checkpoints.build(tmp_path, FAMILIES)


def test_experts_are_refused_with_the_reason() -> None:
    config = hub_config(SIZE) | {"activation_function": "gelu", "moe_every_n_layers": 2}
    with pytest.raises(StartupError, match="mixture of experts, which transformers cannot read"):
        view(config)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("encoder.layers.1.mlp.fc11.weight", None),
    ("encoder.layers.0.attn.Wqkv.bias", torch.ones(192)),
    ("encoder.layers.0.mlp.fc2.weight", torch.ones(64, 95)),
    ("emb_ln.weight", torch.ones(64, dtype=torch.int32)),
]


@pytest.mark.parametrize(
    ("name", "tensor"), TENSORS, ids=["missing", "unexpected", "shape", "type"]
)
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    write_checkpoint(tmp_path, "hub", SIZE, 3)
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "hub", SIZE, 3)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(StartupError):
        checkpoints.build(tmp_path, FAMILIES)


@pytest.mark.slow
def test_real_size(tmp_path: Path) -> None:
    """12 layers of 768 at 8, 300 and 3,000 tokens."""
    write_checkpoint(tmp_path, "hub", REAL, 20)
    checkpoints.assert_equal(tmp_path, FAMILIES, (8, 300, 3000))
