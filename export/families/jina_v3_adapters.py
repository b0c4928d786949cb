"""Turns jina-embeddings-v3's own files into transformers' for one task, with its adapter merged.

The hub's files name code (which never runs) and hold, beside each matrix W, an adapter for every
task t: A (tasks, rank, in) and B (tasks, out, rank). For a task, that code uses the matrix
W + B[t] A[t] * alpha / rank, or the table of embeddings W + A[t] B[t] * alpha / rank: Hu et al.,
https://arxiv.org/abs/2106.09685. Without a task it uses W.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export import files
from export.config_keys import check
from export.families.family import Keys
from export.files import WEIGHTS, Json, refused

_CODE = "xlm-roberta-flash-implementation"
_STEP = "custom_st.Transformer"
_READ_STEP = "sentence_transformers.models.Transformer"
_ORIGINAL, _A, _B = ".original", ".0.lora_A", ".0.lora_B"

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
    "max_position_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_KEYS: Keys = {
    **dict.fromkeys(
        (
            *_SIZES,
            "rotary_emb_base",
            "lora_adaptations",
            "lora_rank",
            "lora_alpha",
            "auto_map",
            # Prompts and dimensions come from models.toml; the rest is for training and kernels.
            "task_instructions",
            "matryoshka_dimensions",
            "emb_pooler",
            "lora_dropout_p",
            "lora_main_params_trainable",
            "use_flash_attn",
            "use_reentrant",
        )
    ),
    "load_trained_adapters": (True,),
    "position_embedding_type": ("rotary",),
    "truncate_dim": (None,),
}


def is_hub_form(config: Json) -> bool:
    """Whether config.json is that of jina-embeddings-v3 with its own code and adapters."""
    return config.get("model_type") == "xlm-roberta" and _CODE in str(config.get("auto_map"))


def load() -> None:
    """Import what a run needs (export/steps.py)."""
    import safetensors.torch  # noqa: F401


def run(job: Json) -> Json:
    """Do what `merge` does, in a process of its own."""
    merge(Path(job["source"]), Path(job["target"]), job["task"])
    return {}


def merge(source: Path, target: Path, task: str | None) -> None:
    """Write `target`: the files of `source` as transformers reads them, for `task` alone.

    `task` is one of lora_adaptations; None: no adapter, as without a task in the hub's code.
    Weights are float32. Other files are links. StartupError for an unknown task, unknown
    keys or tensors, and shapes that do not fit; it names file and key.
    """
    path = source / "config.json"
    config = files.load(path, dict)
    check(config, _KEYS, path)
    adapters = _Adapters(source, config, task)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in (path.name, *WEIGHTS, "modules.json"):
            (target / file.name).symlink_to(file.resolve(), target_is_directory=file.is_dir())
    _write(target / path.name, _view(config, path))
    _write(target / "modules.json", _modules(source / "modules.json"))
    adapters.write(target / WEIGHTS[0])


def _view(config: Json, path: Path) -> Json:
    for key in (*_SIZES[:8], "rotary_emb_base"):
        if key not in config:
            raise refused(f"{path}: {key} is missing; files with adapters have it")
    return {
        **{key: config[key] for key in _SIZES if key in config},
        "architectures": ["JinaEmbeddingsV3Model"],
        "model_type": "jina_embeddings_v3",
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rotary_emb_base"]},
    }


def _modules(path: Path) -> list[Json]:
    """modules.json with the step that chooses a task replaced by sentence-transformers' own."""
    steps: list[Json] = files.load(path, list)
    return [
        {**{k: v for k, v in step.items() if k != "kwargs"}, "type": _READ_STEP}
        if step.get("type") == _STEP
        else step
        for step in steps
    ]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


class _Adapters:
    """The tensors of one file, each merged with its adapter for one task."""

    def __init__(self, source: Path, config: Json, task: str | None) -> None:
        self._path = source / WEIGHTS[0]
        if not self._path.is_file():
            raise refused(f"{self._path}: no such file; weights are accepted as safetensors")
        where, tasks = source / "config.json", config.get("lora_adaptations")
        if not isinstance(tasks, list) or len(set(tasks)) != len(tasks):
            raise refused(f"{where}: lora_adaptations = {tasks!r}; a list of tasks is accepted")
        if task is not None and task not in tasks:
            raise refused(f"task = {task!r}; one of {', '.join(tasks)} is accepted ({where})")
        rank, alpha = config.get("lora_rank"), config.get("lora_alpha")
        if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
            raise refused(f"{where}: lora_rank = {rank!r}, lora_alpha = {alpha!r}; numbers needed")
        self._count, self._rank, self._scale = len(tasks), rank, alpha / rank
        self._task = None if task is None else tasks.index(task)

    def write(self, path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(self._path, framework="pt") as file:
            tensors = dict(self._merged(file, set(file.keys())))
        save_file(tensors, path, metadata={"format": "pt"})

    def _merged(self, file: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
        while names:
            name = min(names)
            stem, parametrized, rest = name.partition(".parametrizations.weight")
            if not parametrized:
                names.remove(name)
                yield name, file.get_tensor(name).float()
                continue
            parts = [f"{stem}.parametrizations.weight{end}" for end in (_ORIGINAL, _A, _B)]
            if rest not in (_ORIGINAL, _A, _B) or not names.issuperset(parts):
                raise refused(f"{self._path}: {name} needs all of {', '.join(parts)}")
            names.difference_update(parts)
            yield f"{stem}.weight", self._matrix(stem, *map(file.get_tensor, parts))

    def _matrix(self, name: str, weight: Any, a: Any, b: Any) -> Any:
        """Merge `weight` (out, in) with its adapter; a table of embeddings is (in, out)."""
        is_table = "embeddings" in name
        rows, columns = weight.shape
        left, right = (a, b) if is_table else (b, a)
        shapes = (tuple(left.shape), tuple(right.shape))
        expected = ((self._count, rows, self._rank), (self._count, self._rank, columns))
        if shapes != expected:
            raise refused(
                f"{self._path}: adapters of {name} have shapes {shapes};"
                f" config.json says {expected}"
            )
        if self._task is None:
            return weight.float()
        product = left[self._task].float() @ right[self._task].float()
        return weight.float() + product * self._scale
