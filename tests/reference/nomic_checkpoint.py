"""nomic_bert checkpoints with random weights, the same on every machine and library version.

Shared by the tests of the family and by those of the whole export.
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Form = Literal["hub", "transformers"]
Weights = dict[str, NDArray[np.float32]]

# vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size
Size = tuple[int, int, int, int, int]
SMALL: Size = (64, 32, 2, 2, 64)
REAL: Size = (30528, 768, 12, 12, 3072)


def write_checkpoint(directory: Path, form: Form, size: Size, seed: int) -> None:
    """Write config.json and model.safetensors; both forms of one size and seed are one model."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = hub_weights(size, seed)
    if form == "transformers":
        weights = transformers_weights(weights)
    config = hub_config(size) if form == "hub" else transformers_config(size)
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def random_ids(seed: int, tokens: int, vocab_size: int) -> NDArray[np.int64]:
    """Token ids (tokens,) int64 within the vocabulary."""
    return (np.random.PCG64(seed).random_raw(tokens) % vocab_size).astype(np.int64)


def hub_weights(size: Size, seed: int) -> Weights:
    """Random weights under the hub's names, drawn in the order of writing."""
    vocab, h, layers, _, inner = size
    # At 768 this is 0.02, the deviation that training starts from. At twice that, rounding alone
    # puts float32 4e-5 from float64 after 12 layers, and no tolerance of 1e-5 could be tested.
    draw = _Draw(seed, deviation=0.55 / h**0.5)
    weights = {
        "embeddings.word_embeddings.weight": draw.matrix(vocab, h),
        "embeddings.token_type_embeddings.weight": draw.matrix(2, h),
        "emb_ln.weight": draw.gain(h),
        "emb_ln.bias": draw.matrix(h),
    }
    for n in range(layers):
        layer = f"encoder.layers.{n}"
        weights |= {
            f"{layer}.attn.Wqkv.weight": draw.matrix(3 * h, h),
            f"{layer}.attn.out_proj.weight": draw.matrix(h, h),
            f"{layer}.norm1.weight": draw.gain(h),
            f"{layer}.norm1.bias": draw.matrix(h),
            f"{layer}.mlp.fc11.weight": draw.matrix(inner, h),
            f"{layer}.mlp.fc12.weight": draw.matrix(inner, h),
            f"{layer}.mlp.fc2.weight": draw.matrix(h, inner),
            f"{layer}.norm2.weight": draw.gain(h),
            f"{layer}.norm2.bias": draw.matrix(h),
        }
    return weights


def transformers_weights(weights: Weights) -> Weights:
    """The same weights under the names of transformers' NomicBertModel."""
    renamed: Weights = {}
    for key, tensor in weights.items():
        name = key.removeprefix("encoder.")
        for hub, transformers in _NAMES:
            name = name.replace(hub, transformers)
        if ".attn.Wqkv." in name:
            for part, rows in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = rows.copy()
        else:
            renamed[name] = tensor
    return renamed


_NAMES = (
    ("emb_ln", "embeddings.LayerNorm"),
    ("attn.out_proj", "self_attn.o_proj"),
    ("fc11", "up_proj"),
    ("fc12", "gate_proj"),
    ("fc2", "down_proj"),
    ("norm1", "post_attention_layernorm"),
    ("norm2", "post_mlp_layernorm"),
)


class _Draw:
    """Raw PCG64 words: numpy promises these bits for ever, but not those of distributions."""

    def __init__(self, seed: int, deviation: float) -> None:
        self.bits = np.random.PCG64(seed)
        self.width = np.float32(deviation * 12**0.5)

    def matrix(self, *shape: int) -> NDArray[np.float32]:
        """Uniform, 0 in the mean."""
        words = self.bits.random_raw(int(np.prod(shape))) >> np.uint64(40)
        unit = words.astype(np.float32) / np.float32(2**24) - np.float32(0.5)
        return (unit * self.width).reshape(shape)

    def gain(self, size: int) -> NDArray[np.float32]:
        return 1 + self.matrix(size)


def hub_config(size: Size) -> dict[str, object]:
    """config.json as nomic-embed-text-v1 and v1.5 have it on the hub, `auto_map` included."""
    vocab, h, layers, heads, inner = size
    code = "nomic-ai/nomic-bert-2048--"
    return {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "attn_pdrop": 0.0,
        "auto_map": {
            "AutoConfig": f"{code}configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": f"{code}modeling_hf_nomic_bert.NomicBertModel",
            "AutoModelForMaskedLM": f"{code}modeling_hf_nomic_bert.NomicBertForPreTraining",
        },
        "bos_token_id": None,
        "causal": False,
        "dense_seq_output": True,
        "embd_pdrop": 0.0,
        "eos_token_id": None,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": h,
        "n_head": heads,
        "n_inner": inner,
        "n_layer": layers,
        "n_positions": 8192,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.0,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "use_xentropy": True,
        "vocab_size": vocab,
    }


def transformers_config(size: Size) -> dict[str, object]:
    """config.json as NomicBertModel.save_pretrained of transformers 5.24 writes it."""
    vocab, h, layers, heads, inner = size
    return {
        "architectures": ["NomicBertModel"],
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": None,
        "classifier_dropout": None,
        "dtype": "float32",
        "eos_token_id": None,
        "head_dim": h // heads,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": h,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "model_type": "nomic_bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        "transformers_version": "5.24.0",
        "type_vocab_size": 2,
        "vocab_size": vocab,
    }
