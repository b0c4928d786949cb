"""Decoders after Llama, and EuroBERT, against transformers: every branch of their graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedserve.errors import StartupError
from export.families.attention import LONGEST_MASKED
from export.families.decoder import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
LINEAR = {"rope_type": "linear", "rope_theta": 700.0, "factor": 4.0}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LLAMA_4 = YARN | {"llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}
BIASES = {"attention_bias": True, "mlp_bias": True}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", BIASES),
    "llama-3": ("Llama", {"rope_parameters": LLAMA_3}),
    "llama-all-heads": ("Llama", {"num_key_value_heads": None, "head_dim": None}),
    "llama-bidirectional": ("Llama", {"is_causal": False}),
    "llama-causal-said": ("Llama", {"is_causal": True}),
    "llama-sliced": ("Llama", {"pretraining_tp": 2}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral-window-of-1": ("Mistral", {"sliding_window": 1}),
    "mistral-wide-window": ("Mistral", {"sliding_window": 4096}),
    "mistral-both-ways": ("Mistral", {"sliding_window": 40, "is_causal": False}),
    "ministral": (
        "Ministral",
        {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "ministral3": ("Ministral3", {"rope_parameters": LLAMA_4}),
    "ministral3-both-ways": ("Ministral3", {"rope_parameters": LLAMA_4, "is_causal": False}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": ("Qwen2", WINDOWS),
    "qwen2-windows-unused": ("Qwen2", WINDOWS | {"use_sliding_window": False}),
    "qwen3": ("Qwen3", {}),
    "qwen3-bias": ("Qwen3", {"attention_bias": True, "hidden_act": "gelu"}),
    "qwen3-bidirectional": ("Qwen3", {"is_causal": False}),
    "qwen3-windows-both-ways": ("Qwen3", WINDOWS | {"is_causal": False}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": YARN}),
    "qwen3-linear": ("Qwen3", {"rope_parameters": LINEAR}),
    "eurobert": ("EuroBert", {}),
    "eurobert-biases": ("EuroBert", BIASES | {"num_key_value_heads": 4}),
}


def decoder(directory: Path, name: str = "qwen3", model_class: Any = None, **options: Any) -> Path:
    kind, given = CONFIGS[name]
    config = getattr(hf, f"{kind}Config")(**SIZE | given | options)
    return checkpoints.write(directory, config, model_class)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(tmp_path: Path, name: str) -> None:
    checkpoints.assert_equal(decoder(tmp_path, name), FAMILIES)


@pytest.mark.parametrize(
    "name", ["qwen3", "mistral-window", "qwen3-windows-both-ways", "llama-bidirectional"]
)
def test_bits_in_company(tmp_path: Path, name: str) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(decoder(tmp_path, name), FAMILIES), VOCABULARY)


@pytest.mark.parametrize("size", [16, 64])
def test_bits_of_causal_texts_beside_any_other(tmp_path: Path, size: int) -> None:
    """One query more than whole blocks of the operator's: see export.families.even_length."""
    graph = checkpoints.Graph(decoder(tmp_path, head_dim=size), FAMILIES)
    lengths = (1, 2, 17, 33, 65, 129, 257, 385, LONGEST_MASKED + 1, 769)
    texts = checkpoints.sequences(VOCABULARY, [*lengths, 900])
    for ids, beside in zip(texts, graph.run(*texts), strict=True):
        assert (graph.run(ids)[0] == beside).all()


OLD_FILES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "theta": ("qwen3", {"rope_theta": 300, "rope_scaling": None}, {"rope_theta": 300}),
    "no-theta": ("qwen2", {}, {"rope_theta": 10000.0}),
    "linear": (
        "llama",
        {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    ),
    "llama-3": (
        "llama",
        {"rope_theta": 300.0, "rope_scaling": LLAMA_3 | {"rope_theta": 300.0}},
        {"rope_type": "llama3", "rope_theta": 300.0},
    ),
}


@pytest.mark.parametrize("case", OLD_FILES.values(), ids=OLD_FILES)
def test_files_of_transformers_4(
    tmp_path: Path, case: tuple[str, dict[str, Any], dict[str, Any]]
) -> None:
    """rope_theta and rope_scaling where 5 writes rope_parameters, and what else 4.57 writes."""
    name, old, read = case
    decoder(tmp_path, name)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["rope_parameters"]
    path.write_text(json.dumps(config | old | {"torch_dtype": "float32"}), "utf-8")
    parameters = hf.AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert parameters | read == parameters
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


def test_files_with_a_head(tmp_path: Path) -> None:
    """Names begin with "model.", and the head's tensor is left alone."""
    decoder(tmp_path, model_class=hf.Qwen3ForCausalLM, tie_word_embeddings=False)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


def test_tied_files(tmp_path: Path) -> None:
    """The head is the embeddings, and no tensor of its own."""
    decoder(tmp_path, model_class=hf.Qwen3ForCausalLM, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


def test_files_in_parts(tmp_path: Path) -> None:
    decoder(tmp_path)
    model = hf.AutoModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    decoder(tmp_path)
    hf.AutoModel.from_pretrained(tmp_path, dtype=dtype).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["norm.weight"].dtype == dtype
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


def test_saved_angles_are_left_alone(tmp_path: Path) -> None:
    """transformers before 4.32 saved frequencies that it computes."""
    decoder(tmp_path, "llama")
    checkpoints.edit_weights(tmp_path, **{"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


AS_ON_THE_HUB = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "pad_token": "<|end_of_text|>",
    "mask_token": "<|mask|>",
    "clf_pooling": "late",
    "hidden_dropout": 0.0,
    "rope_scaling": None,
    "rope_theta": 250000,
}


def test_eurobert_as_on_the_hub(tmp_path: Path) -> None:
    """transformers has the family, and runs none of the code that auto_map names."""
    decoder(tmp_path, "eurobert", hf.EuroBertForMaskedLM)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8")) | AS_ON_THE_HUB
    del config["rope_parameters"]
    code = {"auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"}}
    path.write_text(json.dumps(config | code), "utf-8")
    assert type(hf.AutoModel.from_pretrained(tmp_path)) is hf.EuroBertModel
    assert FAMILIES["eurobert"].auto_map
    path.write_text(json.dumps(config), "utf-8")
    checkpoints.assert_equal(tmp_path, FAMILIES, (3, 40, 17))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "eurobert"])
def test_no_full_attention_matrix(tmp_path: Path, name: str) -> None:
    """At 8,192 tokens and 4 heads a full matrix would be 1,024 MiB."""
    graph = checkpoints.build(decoder(tmp_path, name), FAMILIES)
    assert checkpoints.peak_memory(graph, 8192) < 150


REFUSED: list[tuple[str, str, Any]] = [
    ("qwen3", "something_new", 3),
    ("qwen3", "hidden_act", "tanh"),
    ("qwen3", "is_causal", None),
    ("qwen3", "is_causal", 0),
    ("qwen3", "is_decoder", True),
    ("qwen3", "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ("qwen3", "rope_parameters", LINEAR | {"mrope_section": [2, 2, 4]}),
    ("qwen3", "rope_parameters", LINEAR | {"partial_rotary_factor": 0.5}),
    ("qwen2", "attention_bias", True),
    ("qwen2-windows", "layer_types", ["sliding_attention", "chunked_attention"]),
    ("mistral-window", "sliding_window", 0),
    ("mistral-window", "layer_types", ["full_attention", "full_attention"]),
    ("mistral-both-ways", "sliding_window", 4096),
    ("ministral3", "rope_parameters", YARN),
    ("llama", "sliding_window", 9),
    ("llama", "rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
    ("eurobert", "is_causal", True),
]


@pytest.mark.parametrize(
    ("name", "key", "value"), REFUSED, ids=[f"{n}-{k}={v}"[:60] for n, k, v in REFUSED]
)
def test_refused_key(tmp_path: Path, name: str, key: str, value: Any) -> None:
    decoder(tmp_path, name)
    if key == "rope_scaling":
        path = tmp_path / "config.json"
        config = json.loads(path.read_text("utf-8"))
        del config["rope_parameters"]
        path.write_text(json.dumps(config), "utf-8")
    checkpoints.edit_config(tmp_path, **{key: value})
    named = "rope_parameters" if key == "rope_scaling" else key
    with pytest.raises(StartupError, match=rf"config\.json: .*{named}"):
        checkpoints.build(tmp_path, FAMILIES)


def test_refused_heads(tmp_path: Path) -> None:
    decoder(tmp_path, head_dim=12)
    with pytest.raises(StartupError, match=r"config\.json: heads of 12 components; accepted"):
        checkpoints.build(tmp_path, FAMILIES)


TENSORS: list[tuple[str, torch.Tensor | None]] = [
    ("layers.1.self_attn.q_norm.weight", None),
    ("layers.0.self_attn.q_proj.bias", torch.ones(64)),
    ("layers.0.mlp.experts.weight", torch.ones(2)),
    ("layers.0.self_attn.k_proj.weight", torch.ones(64, 32)),
]


@pytest.mark.parametrize(("name", "tensor"), TENSORS, ids=["missing", "bias", "extra", "shape"])
def test_refused_tensor(tmp_path: Path, name: str, tensor: torch.Tensor | None) -> None:
    decoder(tmp_path)
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=rf"model\.safetensors: .*{name}"):
        checkpoints.build(tmp_path, FAMILIES)
