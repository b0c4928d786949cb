"""The weights of a nomic_bert directory, under the hub's names or transformers 5's.

transformers 5 saves its own configuration beside weights under the hub's names, so the names of
the weights do not follow from those of the configuration.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from export.families.nomic_bert_facts import Facts, read_facts


def read_checkpoint(
    model_dir: Path, *, allow_auto_map: bool = False
) -> tuple[Facts, dict[str, torch.Tensor]]:
    """Read config.json and model.safetensors; see `read_facts` and `read_weights`."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    facts = read_facts(config, allow_auto_map=allow_auto_map)
    return facts, read_weights(model_dir, facts)


def read_weights(model_dir: Path, facts: Facts) -> dict[str, torch.Tensor]:
    """Read model.safetensors under the hub's names, each tensor float32 and of its shape.

    float16 and bfloat16 weights are widened, which is exact. Raises ValueError naming every key
    that is missing or unexpected and every wrong shape or type; no other format is read.
    """
    path = model_dir / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: not found; accepted: weights in one model.safetensors")
    weights = _hub_names(load_file(path))
    shapes = weight_shapes(facts)
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ValueError(f"{path}: missing weights {', '.join(missing)}")
    if unexpected := sorted(weights.keys() - shapes.keys()):
        raise ValueError(f"{path}: unexpected weights {', '.join(unexpected)}")
    for key, tensor in weights.items():
        _refuse_tensor(path, key, tensor, shapes[key])
    return {key: weights[key].to(torch.float32) for key in shapes}


def weight_shapes(facts: Facts) -> dict[str, tuple[int, ...]]:
    """Every weight of the model under the hub's name, with its shape, in a fixed order."""
    h, inner = facts.hidden_size, facts.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (facts.vocab_size, h),
        "embeddings.token_type_embeddings.weight": (facts.type_vocab_size, h),
        "emb_ln.weight": (h,),
        "emb_ln.bias": (h,),
    }
    for n in range(facts.num_hidden_layers):
        layer = {
            "attn.Wqkv.weight": (3 * h, h),
            "attn.out_proj.weight": (h, h),
            "norm1.weight": (h,),
            "norm1.bias": (h,),
            "mlp.fc11.weight": (inner, h),
            "mlp.fc12.weight": (inner, h),
            "mlp.fc2.weight": (h, inner),
            "norm2.weight": (h,),
            "norm2.bias": (h,),
        }
        shapes |= {f"encoder.layers.{n}.{key}": shape for key, shape in layer.items()}
    return shapes


def _refuse_tensor(path: Path, key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{path}: {key} has shape {tuple(tensor.shape)}; accepted: {shape}")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{path}: {key} is {tensor.dtype}; accepted: float32, float16 or bfloat16")


# transformers 5's names (5.18, NomicBertModel) and the hub's; q, k and v are joined beside it.
_RENAMED: tuple[tuple[str, str], ...] = (
    ("embeddings.LayerNorm.", "emb_ln."),
    (".self_attn.o_proj.", ".attn.out_proj."),
    (".mlp.up_proj.", ".mlp.fc11."),
    (".mlp.gate_proj.", ".mlp.fc12."),
    (".mlp.down_proj.", ".mlp.fc2."),
    (".post_attention_layernorm.", ".norm1."),
    (".post_mlp_layernorm.", ".norm2."),
)


def _hub_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {_hub_name(key): tensor for key, tensor in weights.items()}
    for key in [key for key in renamed if key.endswith(".self_attn.q_proj.weight")]:
        layer = key.removesuffix(".self_attn.q_proj.weight")
        parts = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[f"{layer}.attn.Wqkv.weight"] = joined
    return renamed


def _hub_name(key: str) -> str:
    if key.startswith("layers."):
        key = f"encoder.{key}"
    for transformers_name, hub_name in _RENAMED:
        key = key.replace(transformers_name, hub_name)
    return key
