"""Models that the hub has in a form of its own: the hub's files, and the same for transformers 5.

The reference cannot read the hub's files without running their code. It reads the native ones,
which are the same numbers under transformers' names. Runs with today's libraries.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.models.checkpoint_files import SIZE, edit_json, hf, randomize, read_json, write_json
from tests.reference.nomic_checkpoint import write_checkpoint

Config = dict[str, Any]


def write(kind: str, published: Path, native: Path) -> None:
    """Complete `published`, which has tokenizer and modules, and write `native` beside it."""
    shutil.copytree(published, native)
    _WRITERS[kind](published, native)


# -- nomic -------------------------------------------------------------------------------------


def _nomic(published: Path, native: Path, **changes: Any) -> None:
    vocabulary = _vocabulary(published)
    size = (vocabulary, 64, 2, 2, 128)
    write_checkpoint(published, "hub", size, seed=3)
    write_checkpoint(native, "transformers", size, seed=3)
    for directory in (published, native):
        _sharpen(directory / "model.safetensors")
    edit_json(published / "config.json", **changes)


def _sharpen(path: Path) -> None:
    """Queries and keys twice as large: attention looks somewhere."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "Wqkv" in name:
            tensor[:128] *= 2
        elif "q_proj" in name or "k_proj" in name:
            tensor *= 2
    save_file(tensors, path, metadata={"format": "pt"})


def _nomic_moe(published: Path, native: Path) -> None:
    """config.json of nomic-embed-text-v2-moe; transformers has no such model to compare with."""
    _nomic(
        published,
        native,
        activation_function="gelu",
        moe_every_n_layers=2,
        moe_impl="megablocks",
        moe_normalize_expert_weights=False,
        moe_resid_pdrop=0.0,
        moe_top_k=2,
        num_experts=8,
        num_shared_experts=0,
        expert_choice_router=False,
        ffn_div=1.0,
        router_aux_loss_coef=0.1,
        rotary_emb_base=10000,
        qkv_proj_bias=True,
        mlp_fc1_bias=True,
        mlp_fc2_bias=True,
        type_vocab_size=1,
    )


# -- gte ---------------------------------------------------------------------------------------

_NEW = "Alibaba-NLP/new-impl--"
# Keys of the hub's config.json of gte-multilingual-base beside sizes and positions.
_GTE = {
    "architectures": ["NewModel"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": f"{_NEW}configuration.NewConfig",
        "AutoModel": f"{_NEW}modeling.NewModel",
    },
    "classifier_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "label2id": {"LABEL_0": 0},
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "model_type": "new",
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "torch_dtype": "float32",
    "transformers_version": "4.39.1",
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
_LOCAL = {
    "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
    "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
}


def _gte(published: Path, native: Path, theta: float, ntk: float | None, **changes: Any) -> None:
    """Weights with q, k and v in one matrix, up and gate in one, as the hub's code has them."""
    numbers = {
        "vocab_size": _vocabulary(published),
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": changes.get("pad_token_id", 1),
        **SIZE,
    }
    rope = {"rope_type": "default", "rope_theta": theta}
    if ntk is not None:
        # The hub's code, scaled: 1 / ((theta * s) ** (2i / d) * s ** (2 / d)). Linear scaling of
        # transformers divides a frequency of its theta by a factor.
        head = SIZE["hidden_size"] // SIZE["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * ntk, "factor": ntk ** (2 / head)}
    tensors = _save(hf.GteConfig(rope_parameters=rope, **numbers), hf.GteModel, native)
    save_file(_packed_gte(tensors), published / "model.safetensors", metadata={"format": "pt"})
    scaling = None if ntk is None else {"type": "ntk", "factor": ntk}
    positions = {"rope_theta": theta, "rope_scaling": scaling}
    write_json(published / "config.json", _GTE | numbers | positions | changes)


def _packed_gte(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "layers.": "encoder.layer.",
        "post_attention_layernorm": "attn_ln",
        "post_mlp_layernorm": "mlp_ln",
        "self_attn.o_proj": "attention.o_proj",
    }
    packs = {
        "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
    }
    return _packed(tensors, names, packs)


def _packed(
    tensors: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    packs: Mapping[str, tuple[str, ...]],
) -> dict[str, torch.Tensor]:
    """Rename tensors, and join the rows of those that the hub's code keeps in one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        target = name
        for theirs, ours in names.items():
            target = target.replace(theirs, ours)
        for pack, parts in packs.items():
            if part := next((part for part in parts if part in name), None):
                target = target.replace(part, pack)
                rows = [tensors[name.replace(part, other)] for other in parts]
                tensor = torch.cat(rows)
        found[target] = tensor.contiguous().clone()
    return found


# -- jina v3 -----------------------------------------------------------------------------------

JINA_TASKS = (
    "retrieval.query",
    "retrieval.passage",
    "separation",
    "classification",
    "text-matching",
)
JINA_TASK = "text-matching"
_RANK, _ALPHA = 4, 2
_FLASH = "jinaai/xlm-roberta-flash-implementation--"
_JINA = {
    "_name_or_path": "jinaai/jina-embeddings-v3",
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {
        "AutoConfig": f"{_FLASH}configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": f"{_FLASH}modeling_lora.XLMRobertaLoRA",
    },
    "bos_token_id": 0,
    "classifier_dropout": None,
    "emb_pooler": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "load_trained_adapters": True,
    "lora_adaptations": list(JINA_TASKS),
    "lora_alpha": _ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": _RANK,
    "matryoshka_dimensions": [32, 64],
    "max_position_embeddings": 8194,
    "model_type": "xlm-roberta",
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": dict.fromkeys(JINA_TASKS, "Represent: "),
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_reentrant": False,
}


def _jina_v3(published: Path, native: Path) -> None:
    """The hub's matrices and their adapters; natively, matrices to which one task's is added."""
    numbers = {"vocab_size": _vocabulary(published), **SIZE}
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    config = hf.JinaEmbeddingsV3Config(
        rope_parameters=rope, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, **numbers
    )
    _save(config, hf.JinaEmbeddingsV3Model, native)
    tensors = load_file(native / "model.safetensors")
    draw = torch.Generator().manual_seed(5)
    hub: dict[str, torch.Tensor] = {}
    merged: dict[str, torch.Tensor] = {}
    for name, tensor in _packed_jina(tensors).items():
        merged[name] = tensor
        if tensor.ndim == 1:
            hub[f"roberta.{name}"] = tensor
            continue
        is_table = "embeddings" in name
        a, b = _adapters(tensor.shape, is_table, draw)
        stem = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
        hub |= {f"{stem}.original": tensor, f"{stem}.0.lora_A": a, f"{stem}.0.lora_B": b}
        task = JINA_TASKS.index(JINA_TASK)
        added = a[task] @ b[task] if is_table else b[task] @ a[task]
        merged[name] = tensor + added * (_ALPHA / _RANK)
    save_file(hub, published / "model.safetensors", metadata={"format": "pt"})
    write_json(published / "config.json", _JINA | numbers)
    # The native directory: the merged matrices, in parts again.
    unpacked = {name: _unpacked(name, merged) for name in tensors}
    save_file(unpacked, native / "model.safetensors", metadata={"format": "pt"})
    modules = read_json(native / "modules.json")
    modules[0] |= {"name": "0", "type": "sentence_transformers.models.Transformer"}
    modules[0].pop("kwargs")
    write_json(native / "modules.json", modules)
    for directory in (published, native):
        limit = {"max_seq_length": 8192, "do_lower_case": False}
        write_json(directory / "sentence_bert_config.json", limit)


_JINA_NAMES = {
    "embeddings.LayerNorm": "emb_ln",
    "layers.": "encoder.layers.",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
    "self_attn.o_proj": "mixer.out_proj",
}
_JINA_PACK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def _packed_jina(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return _packed(tensors, _JINA_NAMES, {"mixer.Wqkv": _JINA_PACK})


def _unpacked(name: str, packed: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor of transformers' `name` among those under the hub's names."""
    target = name
    for theirs, ours in _JINA_NAMES.items():
        target = target.replace(theirs, ours)
    for place, part in enumerate(_JINA_PACK):
        if part in name:
            rows = packed[target.replace(part, "mixer.Wqkv")]
            return rows.chunk(3)[place].contiguous().clone()
    return packed[target].contiguous().clone()


def _adapters(
    shape: torch.Size, is_table: bool, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of every task, which a table of embeddings multiplies in the other order."""
    rows, columns = shape
    tasks = len(JINA_TASKS)
    sizes = ((tasks, _RANK, columns), (tasks, rows, _RANK))
    if is_table:
        sizes = ((tasks, rows, _RANK), (tasks, _RANK, columns))
    a, b = (torch.randn(size, generator=draw) * 0.2 for size in sizes)
    return a, b


# -- shared ------------------------------------------------------------------------------------


def _save(config: Any, model_class: Any, directory: Path) -> dict[str, torch.Tensor]:
    """Save a random model, under the names that its class has for them; return its tensors."""
    model = model_class(config).eval()
    randomize(model)
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("pooler.")
    }
    config.architectures = [model_class.__name__]
    config.save_pretrained(directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def _vocabulary(directory: Path) -> int:
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    return int(np.ceil(len(tokenizer) / 64) * 64)


_WRITERS: Mapping[str, Callable[[Path, Path], None]] = {
    "nomic": _nomic,
    "nomic-arctic": lambda p, n: _nomic(p, n, max_trained_positions=2048),
    "nomic-moe": _nomic_moe,
    "gte-multilingual": lambda p, n: _gte(p, n, 20000.0, 8.0),
    "gte-en": lambda p, n: _gte(p, n, 500000.0, 2.0, pad_token_id=0, type_vocab_size=1),
    "gte-arctic": lambda p, n: _gte(
        p, n, 160000.0, None, model_type="gte", auto_map=_LOCAL, architectures=["GteModel"]
    ),
    "jina-v3": _jina_v3,
}
