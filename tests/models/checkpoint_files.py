"""The files around a model, in the forms in which sentence-transformers 2 to 5 published them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

hf: Any = transformers  # untyped
IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"
SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
HIDDEN = SIZE["hidden_size"]

_CLASS = "sentence_transformers.models."
_VERSIONS = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
# In the order of 2.x, which had the first four.
_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
_LATER_MODES = ("weightedmean_tokens", "lasttoken")


@dataclass(frozen=True, slots=True)
class Dense:
    """A Dense module: (inputs) -> (outputs)."""

    inputs: int
    outputs: int
    activation: str
    bias: bool


@dataclass(frozen=True, slots=True)
class Modules:
    """What sentence-transformers' files say: modules after the transformer, limit, prompts.

    `limit` None: no sentence_bert_config.json. `prompts` None: the form of 2.x, which had none.
    """

    pooling: str
    limit: int | None
    dense: Sequence[Dense] = ()
    normalize: bool = True
    lower: bool = False
    prompts: Mapping[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write modules.json and each module's folder."""
        listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
        _write_pooling(directory / "1_Pooling", self.pooling, self.prompts is not None)
        for number, dense in enumerate(self.dense, 2):
            listed.append((f"{number}_Dense", "Dense"))
            _write_dense(directory / f"{number}_Dense", dense, seed=number)
        if self.normalize:
            listed.append((f"{len(listed)}_Normalize", "Normalize"))
            (directory / listed[-1][0]).mkdir()
        write_modules(directory, listed)
        if self.limit is not None:
            sentence = {"max_seq_length": self.limit, "do_lower_case": self.lower}
            write_json(directory / "sentence_bert_config.json", sentence | dict(self.options))
        write_versions(directory, self.prompts)


def write_modules(directory: Path, listed: Sequence[tuple[str, str]]) -> None:
    """Write modules.json: each module's folder and class."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _CLASS + name}
        for i, (path, name) in enumerate(listed)
    ]
    write_json(directory / "modules.json", modules)


def write_versions(directory: Path, prompts: Mapping[str, str] | None) -> None:
    """Write config_sentence_transformers.json, with prompts from 2.4 on."""
    config: dict[str, Any] = {"__version__": _VERSIONS}
    if prompts is not None:
        config["prompts"] = dict(prompts)
        config |= {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(directory / "config_sentence_transformers.json", config)


def _write_pooling(folder: Path, mode: str, later: bool) -> None:
    modes = _MODES + (_LATER_MODES if later else ())
    assert mode in modes or mode in _LATER_MODES
    config: dict[str, Any] = {"word_embedding_dimension": HIDDEN}
    config |= {f"pooling_mode_{one}": one == mode for one in modes}
    if later:
        config["include_prompt"] = True
    write_json(folder / "config.json", config)


def _write_dense(folder: Path, dense: Dense, seed: int) -> None:
    config = {
        "in_features": dense.inputs,
        "out_features": dense.outputs,
        "bias": dense.bias,
        "activation_function": dense.activation,
    }
    write_json(folder / "config.json", config)
    draw = torch.Generator().manual_seed(seed)
    weights = {"linear.weight": torch.randn(dense.outputs, dense.inputs, generator=draw) * 0.15}
    if dense.bias:
        weights["linear.bias"] = torch.randn(dense.outputs, generator=draw) * 0.1
    save_file(weights, folder / "model.safetensors")


# -- the model ---------------------------------------------------------------------------------


def write_model(
    directory: Path,
    config: Any,
    model_class: Any = None,
    dtype: torch.dtype = torch.float32,
    hub: Mapping[str, Any] | None = None,
    shard: str = "5GB",
) -> None:
    """Save a model with random weights; `hub` are keys of config.json as the hub's file has them.

    Attention logits spread by about one, so that attention looks somewhere, and no norm is one and
    zero: a wrong position, mask, order or activation shows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = (model_class or hf.AutoModel.from_config)(config).eval()
    randomize(model)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    (directory / "generation_config.json").unlink(missing_ok=True)
    edit_json(directory / "config.json", **(hub or {}))


def randomize(model: Any, seed: int = 0) -> None:
    """Draw all weights; the same names and shapes give the same weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "relative" in name or "rel_embeddings" in name:
                parameter.normal_(0, 0.5)
            elif "embed" in name or "shared" in name:
                # As small as trained ones: a norm's epsilon shows.
                parameter.normal_(0, 0.04)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)


def edit_weights(path: Path, **changes: torch.Tensor) -> None:
    """Add tensors to a safetensors file."""
    save_file(load_file(path) | changes, path, metadata={"format": "pt"})


# -- the tokenizer -----------------------------------------------------------------------------


def write_tokenizer(directory: Path, tokenizer: Tokenizer, kind: str, **options: Any) -> int:
    """Save a tokenizer as transformers' class `kind`; return how many ids it has."""
    fast = getattr(hf, kind)(tokenizer_object=tokenizer, **options)
    fast.save_pretrained(directory)
    return len(fast)


# -- JSON --------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a file, and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys; one that is None is removed."""
    merged = read_json(path) | changes
    write_json(
        path, {key: value for key, value in merged.items() if changes.get(key, 0) is not None}
    )
