"""jina-embeddings-v3's own files: one task's adapter, merged, against torch's parametrizations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedserve.errors import StartupError
from export.families.jina_v3 import FAMILIES
from export.families.jina_v3_adapters import is_hub_form, merge
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
RANK, ALPHA = 4, 2
VOCABULARY = 150
CODE = "jinaai/xlm-roberta-flash-implementation--"
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# The hub's config.json of jina-embeddings-v3, its sizes made small.
CONFIG = {
    **SIZE,
    "_name_or_path": "jinaai/jina-embeddings-v3",
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {
        "AutoConfig": f"{CODE}configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": f"{CODE}modeling_lora.XLMRobertaLoRA",
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
    "lora_adaptations": list(TASKS),
    "lora_alpha": ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": RANK,
    "matryoshka_dimensions": [32, 64],
    "max_position_embeddings": 8194,
    "model_type": "xlm-roberta",
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 5000.0,
    "task_instructions": dict.fromkeys(TASKS, "Represent: "),
    "torch_dtype": "bfloat16",
    "transformers_version": "4.31.0",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_reentrant": False,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def is_adapted(name: str) -> bool:
    """The hub's code adapts every linear layer and every table of embeddings."""
    return name.endswith(".weight") and "norm" not in name and "emb_ln" not in name


def adapter(name: str, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of all tasks, as the hub's code lays them out for a table and for a matrix."""
    rows, columns = shape
    if "embeddings" in name:
        sizes = (len(TASKS), rows, RANK), (len(TASKS), RANK, columns)
    else:
        sizes = (len(TASKS), RANK, columns), (len(TASKS), rows, RANK)
    first, second = (torch.randn(size) * 0.1 for size in sizes)
    return first, second


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the hub's form, in bfloat16, with an adapter for each task."""
    directory = tmp_path_factory.mktemp("hub")
    checkpoints.write(directory, hf.JinaEmbeddingsV3Config(**SIZE), hf.JinaEmbeddingsV3ForMaskedLM)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.startswith("lm_head."):
            continue
        if not is_adapted(name):
            tensors[name] = tensor.bfloat16()
            continue
        stem = name.removesuffix(".weight") + ".parametrizations.weight"
        first, second = adapter(name, tensor.shape)
        tensors[f"{stem}.original"] = tensor.bfloat16()
        tensors[f"{stem}.0.lora_A"] = first.bfloat16()
        tensors[f"{stem}.0.lora_B"] = second.bfloat16()
    save_file(tensors, directory / "model.safetensors")
    checkpoints.write_config(directory, CONFIG)
    (directory / "modules.json").write_text(json.dumps(MODULES), encoding="utf-8")
    (directory / "1_Pooling").mkdir()
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    return directory


def parametrized(directory: Path, task: str | None, text: torch.Tensor) -> torch.Tensor:
    """transformers' model of the original weights; each layer multiplies by what the task adds.

    Computed layer by layer in a forward pass, as the hub's code does, and never merged.
    """
    tensors = {k: t.float() for k, t in load_file(directory / "model.safetensors").items()}
    config = hf.JinaEmbeddingsV3Config(
        **SIZE, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}
    )
    model = hf.JinaEmbeddingsV3Model(config, add_pooling_layer=False)

    def taken(name: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor] | None]:
        stem = f"roberta.{name}.parametrizations.weight"
        if task is None:
            return tensors[f"{stem}.original"], None
        n = TASKS.index(task)
        a, b = tensors[f"{stem}.0.lora_A"][n], tensors[f"{stem}.0.lora_B"][n]
        if "embeddings" in name:
            return tensors[f"{stem}.original"], lambda ids: a[ids] @ b * (ALPHA / RANK)
        return tensors[f"{stem}.original"], lambda x: x @ a.T @ b.T * (ALPHA / RANK)

    def hook(module: torch.nn.Module, name: str, rows: slice) -> None:
        weight, added = taken(name)
        with torch.no_grad():
            module.weight.copy_(weight[rows])  # type: ignore[operator]
        if added is not None:
            module.register_forward_hook(lambda _, x, y: y + added(x[0])[..., rows])

    def plain(module: torch.nn.Module, name: str) -> None:
        with torch.no_grad():
            module.weight.copy_(tensors[f"roberta.{name}.weight"])  # type: ignore[operator]
            module.bias.copy_(tensors[f"roberta.{name}.bias"])  # type: ignore[operator]

    whole = slice(None)
    hook(model.embeddings.word_embeddings, "embeddings.word_embeddings", whole)
    hook(model.embeddings.token_type_embeddings, "embeddings.token_type_embeddings", whole)
    plain(model.embeddings.LayerNorm, "emb_ln")
    for n, layer in enumerate(model.layers):
        name, attention, mlp = f"encoder.layers.{n}", layer.self_attn, layer.mlp
        for i, part in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
            rows = slice(64 * i, 64 * (i + 1))
            hook(part, f"{name}.mixer.Wqkv", rows)
            with torch.no_grad():
                part.bias.copy_(tensors[f"roberta.{name}.mixer.Wqkv.bias"][rows])
        for module, own in (
            (attention.o_proj, "mixer.out_proj"),
            (mlp.fc1, "mlp.fc1"),
            (mlp.fc2, "mlp.fc2"),
        ):
            hook(module, f"{name}.{own}", whole)
            with torch.no_grad():
                module.bias.copy_(tensors[f"roberta.{name}.{own}.bias"])
        plain(layer.post_attention_layernorm, f"{name}.norm1")
        plain(layer.post_mlp_layernorm, f"{name}.norm2")
    with torch.inference_mode():
        states: torch.Tensor = model.eval()(input_ids=text[None]).last_hidden_state[0]
    return states


@pytest.mark.parametrize("task", [*TASKS, None], ids=str)
def test_a_tasks_adapter(hub: Path, tmp_path: Path, task: str | None) -> None:
    """Merged, exported: what each layer gives that adds the adapter's product to its own."""
    merge(hub, tmp_path / "one", task)
    [ids] = checkpoints.sequences(VOCABULARY, (40,))
    found = checkpoints.Graph(tmp_path / "one", FAMILIES).run(ids)[0]
    expected = parametrized(hub, task, torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)
    checkpoints.assert_equal(tmp_path / "one", FAMILIES, (3, 40, 600))


def test_tasks_differ(hub: Path, tmp_path: Path) -> None:
    [ids] = checkpoints.sequences(VOCABULARY, (10,))
    rows = []
    for task in (None, *TASKS):
        merge(hub, tmp_path / str(task), task)
        rows.append(checkpoints.Graph(tmp_path / str(task), FAMILIES).run(ids)[0])
    for n, row in enumerate(rows):
        assert all(np.abs(row - other).max() > 1e-2 for other in rows[n + 1 :])


def test_other_files(hub: Path, tmp_path: Path) -> None:
    """modules.json names no code any more; what is not touched is a link."""
    target = tmp_path / "one"
    merge(hub, target, TASKS[0])
    steps = json.loads((target / "modules.json").read_text("utf-8"))
    assert [step["type"] for step in steps] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]
    assert "kwargs" not in steps[0]
    assert (target / "tokenizer.json").resolve() == (hub / "tokenizer.json").resolve()
    assert (target / "1_Pooling").is_dir()
    assert "auto_map" not in json.loads((target / "config.json").read_text("utf-8"))


def test_hub_form() -> None:
    assert is_hub_form(CONFIG)
    assert not is_hub_form({"model_type": "xlm-roberta"})
    assert not is_hub_form({"model_type": "jina_embeddings_v3"})


REFUSED: list[tuple[str, Any]] = [
    ("something_new", 3),
    ("load_trained_adapters", False),
    ("position_embedding_type", "absolute"),
    ("truncate_dim", 32),
    ("lora_adaptations", None),
    ("lora_rank", "4"),
    ("lora_rank", 8),
]


@pytest.fixture
def copied(hub: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to change."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "modules.json"):
        (directory / name).write_bytes((hub / name).read_bytes())
    return directory


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v}" for k, v in REFUSED])
def test_refused_key(copied: Path, tmp_path: Path, key: str, value: Any) -> None:
    checkpoints.edit_config(copied, **{key: value})
    expected = "adapters of .* have shapes" if value == 8 else key
    with pytest.raises(StartupError, match=expected):
        merge(copied, tmp_path / "one", TASKS[0])


def test_unknown_task(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"task = 'query'; one of retrieval\.query, "):
        merge(hub, tmp_path / "one", "query")


def test_half_an_adapter(copied: Path, tmp_path: Path) -> None:
    name = "roberta.encoder.layers.0.mlp.fc1.parametrizations.weight.0.lora_B"
    checkpoints.edit_weights(copied, **{name: None})
    with pytest.raises(StartupError, match="needs all of"):
        merge(copied, tmp_path / "one", TASKS[0])
