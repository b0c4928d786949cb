"""What the files say: pooling, finishing, limit, prompts, dimension.

What is not understood is refused with the file and the key, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import tokenizers

from embedserve.config import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.finishing import ACTIVATIONS
from embedserve.pooling import POOLING, Floats

Json = dict[str, Any]

# A missing model_max_length, as transformers writes it down.
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Finish:
    """One step after pooling. dense: weight (o, i) and bias (o,); layer_norm: both (h,) or none.

    `added`: the operator asks for it in models.toml, the files do not say it.
    """

    kind: Literal["dense", "layer_norm", "normalize"]
    eps: float = 0.0
    activation: str | None = None
    weight: Floats | None = None
    bias: Floats | None = None
    added: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a model's files, and the operator's wishes beside them, say about its vectors.

    `directory` holds config.json, weights and tokenizer; hidden_size is that of its token
    embeddings, dimension that of the final vector; max_tokens counts special tokens.
    """

    directory: Path
    model_type: str
    hidden_size: int
    dimension: int
    vocabulary: int
    max_tokens: int
    pooling: tuple[str, ...]
    finishing: tuple[Finish, ...]
    matryoshka: tuple[int, ...]
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    do_lower_case: bool
    pad_token_id: int


def read(directory: Path, spec: ModelSpec) -> Facts:
    """Read a sentence-transformers directory. StartupError (65) names the file and the key."""
    refuse_kernels()
    modules = _modules(directory / "modules.json")
    root = _inside(directory, modules[0].path)
    config = _config(root / "config.json")
    sentence = _sentence_config(root)
    hidden_size, pooling = _pooling(_inside(directory, modules[1].path) / "config.json")
    finishing, dimension = _finishing(directory, modules[2:], hidden_size * len(pooling))
    _refuse_pickle(root)
    prompts, default_prompt_name = _prompts(directory / "config_sentence_transformers.json", spec)
    tokenizer_config = _tokenizer_config(root / "tokenizer_config.json")
    finishing = _with_wishes(finishing, spec)
    return Facts(
        directory=root,
        model_type=config["model_type"],
        hidden_size=hidden_size,
        dimension=dimension,
        vocabulary=_integer(config, "vocab_size", root / "config.json"),
        max_tokens=_max_tokens(sentence, tokenizer_config, config, root),
        pooling=pooling,
        finishing=finishing,
        matryoshka=_matryoshka(spec, dimension),
        prompts=MappingProxyType(prompts),
        default_prompt_name=default_prompt_name,
        do_lower_case=bool(sentence.get("do_lower_case", False)),
        pad_token_id=_pad_token_id(tokenizer_config, root),
    )


def refuse_kernels() -> None:
    """Refuse to run beside `kernels`: with it, transformers downloads and runs code of configs."""
    if find_spec("kernels") is not None:
        raise StartupError(
            "the package kernels is installed: transformers would run code that a model's "
            "config.json names; uninstall it: pip uninstall kernels",
            Exit.CONFIG,
        )


# -- modules.json ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: a key of MODULES, and its folder."""

    kind: str
    path: str


def _class_paths(name: str, folder: str) -> tuple[str, ...]:
    """How sentence-transformers has called a class in modules.json, 2.x first, 6.x last."""
    new = f"sentence_transformers.{folder}.modules"
    return (
        f"sentence_transformers.models.{name}",
        f"sentence_transformers.models.{name}.{name}",
        f"{new}.{name}",
        f"{new}.{_snake(name)}.{name}",
    )


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


# Normalize moved from sentence_transformer to base in 6.0.
MODULES: Mapping[str, tuple[str, ...]] = {
    "Transformer": _class_paths("Transformer", "base"),
    "Pooling": _class_paths("Pooling", "sentence_transformer"),
    "Dense": _class_paths("Dense", "base"),
    "LayerNorm": _class_paths("LayerNorm", "sentence_transformer"),
    "Normalize": (
        *_class_paths("Normalize", "sentence_transformer"),
        *_class_paths("Normalize", "base")[2:],
    ),
}
_KIND = {path: kind for kind, paths in MODULES.items() for path in paths}
_AFTER_POOLING = ("Dense", "LayerNorm", "Normalize")


def _modules(path: Path) -> list[Module]:
    entries = _load(path, list)
    modules = []
    for i, entry in enumerate(entries):
        where = f"{path}: [{i}]"
        if not isinstance(entry, dict):
            raise _refused(f"{where} is {entry!r}; an object is accepted")
        _refuse_unknown(entry, ("idx", "name", "path", "type", "kwargs"), where)
        if entry.get("kwargs"):
            raise _refused(f"{where} kwargs = {entry['kwargs']!r}; none are accepted")
        if entry.get("type") not in _KIND:
            raise _refused(f"{where} type = {entry.get('type')!r}; accepted: {', '.join(MODULES)}")
        modules.append(Module(_KIND[entry["type"]], str(entry.get("path", ""))))
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_AFTER_POOLING):
        raise _refused(
            f"{path}: modules are {', '.join(kinds)}; accepted: Transformer, Pooling, then any of "
            f"{', '.join(_AFTER_POOLING)}"
        )
    return modules


# -- config.json, sentence_bert_config.json, tokenizer_config.json -----------------------------


# transformers 4.56 to 5.2 download and run what these name, where `kernels` is installed.
_ATTENTION: Mapping[str, tuple[str | None, ...]] = {
    "_attn_implementation_internal": (None,),
    "_attn_implementation": (None, "eager", "sdpa"),
    "attn_implementation": (None, "eager", "sdpa"),
}


def _config(path: Path) -> Json:
    config: Json = _load(path, dict)
    if not isinstance(config.get("model_type"), str):
        raise _refused(f"{path}: model_type = {config.get('model_type')!r}; a name is accepted")
    # nomic_bert's own code is replaced by export/families/nomic_bert.py and never run.
    if "auto_map" in config and config["model_type"] != "nomic_bert":
        raise _refused(f"{path}: auto_map names remote code; it is never run")
    for key, accepted in _ATTENTION.items():
        if config.get(key) not in accepted:
            raise _refused(f"{path}: {key} = {config[key]!r} may name remote code; remove it")
    for key in ("is_encoder_decoder", "quantization_config"):
        if config.get(key):
            raise _refused(f"{path}: {key} = {config[key]!r} is not supported; accepted: none")
    if (adapter := path.parent / "adapter_config.json").exists():
        raise _refused(f"{adapter}: adapters are not supported; merge it into the model first")
    return config


# In sentence-transformers' order; the first that is not empty counts.
_SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_EMPTY: tuple[object, ...] = (None, {}, {"trust_remote_code": False}, {"trust_remote_code": True})

# key -> the values that are accepted; None: checked where it is used, or without effect here.
_SENTENCE_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "max_seq_length": None,
    "do_lower_case": (True, False, None),
    "transformer_task": ("feature-extraction",),
    "modality_config": ({"text": _TEXT},),
    "module_output_name": ("token_embeddings",),
    "processing_kwargs": (None, {}),
    "unpad_inputs": (None, True, False),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    # trust_remote_code in a file has no effect in sentence-transformers, nor here.
    **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), _EMPTY),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), _EMPTY),
}


def _sentence_config(root: Path) -> Json:
    for name in _SENTENCE_CONFIGS:
        path = root / name
        config: Json = _load(path, dict) if path.exists() else {}
        if config:
            _check_keys(config, _SENTENCE_KEYS, path)
            return config
    return {}


def _tokenizer_config(path: Path) -> Json:
    if not (tokenizer := path.parent / "tokenizer.json").is_file():
        raise _refused(f"{tokenizer}: no such file; only tokenizers in this form are supported")
    config: Json = _load(path, dict) if path.exists() else {}
    if "auto_map" in config:
        raise _refused(f"{path}: auto_map names remote code; it is never run")
    if config.get("truncation_side", "right") != "right":
        found = config["truncation_side"]
        raise _refused(f'{path}: truncation_side = {found!r} is not supported; accepted: "right"')
    return config


def _pad_token_id(config: Json, root: Path) -> int:
    token = config.get("pad_token")
    path = root / "special_tokens_map.json"
    if token is None and path.exists():
        token = _load(path, dict).get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise _refused(f"{root / 'tokenizer.json'}: cannot be read: {error}") from error
    number = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        raise _refused(
            f"{root / 'tokenizer_config.json'}: pad_token = {token!r}; a token of tokenizer.json "
            "is accepted"
        )
    return int(number)


def _max_tokens(sentence: Json, tokenizer_config: Json, config: Json, root: Path) -> int:
    """The limit as sentence-transformers 5.7 sets it.

    max_seq_length alone when it is given; else the tokenizer's model_max_length, at most
    config.json's max_position_embeddings.
    """
    limit = sentence.get("max_seq_length")
    if limit is None:
        limits = [tokenizer_config.get("model_max_length"), config.get("max_position_embeddings")]
        found = [v for v in limits if isinstance(v, int | float) and 0 < v < _NO_LIMIT]
        limit = int(min(found)) if found else None
    if type(limit) is not int or limit < 1:
        raise _refused(
            f"{root / _SENTENCE_CONFIGS[0]}: max_seq_length = {limit!r}, and neither "
            "tokenizer_config.json model_max_length nor config.json max_position_embeddings says "
            "how many tokens the model takes"
        )
    return limit


_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "tf_model.h5")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def _refuse_pickle(directory: Path) -> None:
    """Refuse a module without safetensors: pickle runs code when it is read."""
    if any((directory / name).is_file() for name in _WEIGHTS):
        return
    pickles = [name for name in _PICKLES if (directory / name).exists()]
    what = f"only {pickles[0]}, which can run code when read" if pickles else "no such file"
    raise _refused(f"{directory / _WEIGHTS[0]}: {what}; weights are accepted as safetensors")


# -- pooling -----------------------------------------------------------------------------------

# sentence-transformers' older boolean keys, in its order of concatenation.
_OLD_POOLING: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIZES = ("embedding_dimension", "word_embedding_dimension")


def _pooling(path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the size of the token embeddings and the modes, in their order."""
    config = _load(path, dict)
    _refuse_unknown(config, (*_OLD_POOLING, *_SIZES, "pooling_mode", "include_prompt"), str(path))
    if config.get("include_prompt", True) is not True:
        found = config["include_prompt"]
        raise _refused(f"{path}: include_prompt = {found!r} is not supported; accepted: true")
    for key in _OLD_POOLING.keys() & config.keys():
        if type(config[key]) is not bool:
            raise _refused(f"{path}: {key} = {config[key]!r}; true or false")
    old = tuple(mode for key, mode in _OLD_POOLING.items() if config.get(key)) or ("mean",)
    value = config.get("pooling_mode", old)
    modes = (value,) if isinstance(value, str) else tuple(value or ())
    if not modes or any(mode not in POOLING for mode in modes):
        raise _refused(f"{path}: pooling_mode = {value!r}; one or several of {', '.join(POOLING)}")
    size = next((key for key in _SIZES if key in config), _SIZES[0])
    return _integer(config, size, path), modes


# -- what follows pooling ----------------------------------------------------------------------


def _finishing(
    directory: Path, modules: Iterable[Module], size: int
) -> tuple[tuple[Finish, ...], int]:
    """Return the steps and the size of the last one's output."""
    steps = []
    for module in modules:
        step, size = _STEPS[module.kind](_inside(directory, module.path), size)
        steps.append(step)
    return tuple(steps), size


_SENTENCE = ("sentence_embedding",)
_DENSE_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "in_features": None,
    "out_features": None,
    "bias": (True, False),
    "activation_function": tuple(ACTIVATIONS),
    "module_input_name": _SENTENCE,
    "module_output_name": (*_SENTENCE, None),
    "use_residual": (False,),
}


def _dense(directory: Path, size: int) -> tuple[Finish, int]:
    path = directory / "config.json"
    config = _load(path, dict)
    _check_keys(config, _DENSE_KEYS, path)
    _expect(_integer(config, "in_features", path), size, f"{path}: in_features")
    out = _integer(config, "out_features", path)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out, size)}
    if config.get("bias", True):
        shapes["linear.bias"] = (out,)
    weights = _weights(directory, shapes)
    # Without the key sentence-transformers takes Tanh.
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    weight, bias = weights["linear.weight"], weights.get("linear.bias")
    return Finish("dense", activation=activation, weight=weight, bias=bias), out


def _layer_norm(directory: Path, size: int) -> tuple[Finish, int]:
    path = directory / "config.json"
    config = _load(path, dict)
    _refuse_unknown(config, ("dimension",), str(path))
    _expect(_integer(config, "dimension", path), size, f"{path}: dimension")
    weights = _weights(directory, {"norm.weight": (size,), "norm.bias": (size,)})
    # torch.nn.LayerNorm's default, which the module does not let one change.
    step = Finish("layer_norm", eps=1e-5, weight=weights["norm.weight"], bias=weights["norm.bias"])
    return step, size


_NORMALIZE_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "module_input_name": _SENTENCE,
    "module_output_name": (*_SENTENCE, None),
}


def _normalize(directory: Path, size: int) -> tuple[Finish, int]:
    if (path := directory / "config.json").exists():
        _check_keys(_load(path, dict), _NORMALIZE_KEYS, path)
    return Finish("normalize"), size


_STEPS = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize}


def _weights(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Read a module's safetensors as float32, exactly the tensors of `shapes`."""
    _refuse_pickle(directory)
    path = directory / _WEIGHTS[0]
    from safetensors.torch import load_file  # numpy's reader knows no bfloat16

    try:
        weights = {k: np.asarray(v.float().numpy(), np.float32) for k, v in load_file(path).items()}
    except Exception as error:  # the library raises its own bare Exception
        raise _refused(f"{path}: cannot be read as safetensors: {error}") from error
    found = {name: weight.shape for name, weight in weights.items()}
    if found != shapes:
        raise _refused(f"{path}: holds {found}; accepted: {dict(shapes)}")
    return weights


def _with_wishes(finishing: tuple[Finish, ...], spec: ModelSpec) -> tuple[Finish, ...]:
    """Append the finishing that models.toml asks for, unless the files already end in it."""
    if not spec.finishing:
        return finishing
    kinds = tuple(step.kind for step in finishing)
    if kinds[len(kinds) - len(spec.finishing) :] == spec.finishing:
        return finishing
    if kinds:
        raise StartupError(
            f"models.toml: [models.{spec.name}] finishing = {list(spec.finishing)}; the model's "
            f"modules.json already says {list(kinds)} after pooling; remove one of them",
            Exit.CONFIG,
        )
    # torch's functional layer_norm without weights has eps 1e-5, as the cards use it.
    steps: Mapping[str, Finish] = {
        "layer_norm": Finish("layer_norm", eps=1e-5, added=True),
        "normalize": Finish("normalize", added=True),
    }
    return tuple(steps[kind] for kind in spec.finishing)


def _matryoshka(spec: ModelSpec, dimension: int) -> tuple[int, ...]:
    for size in spec.matryoshka or ():
        if size > dimension:
            raise StartupError(
                f"models.toml: [models.{spec.name}] matryoshka has {size}; the model's vectors "
                f"have {dimension} components",
                Exit.CONFIG,
            )
    return spec.matryoshka or ()


# -- prompts -----------------------------------------------------------------------------------

_MODEL_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "__version__": None,
    "model_type": ("SentenceTransformer",),
    "prompts": None,
    "default_prompt_name": None,
    "similarity_fn_name": None,
    "truncate_dim": (None,),
}


def _prompts(path: Path, spec: ModelSpec) -> tuple[dict[str, str], str | None]:
    """Return the prompts and the default's name, from the file or, where it has none, the spec."""
    config: Json = _load(path, dict) if path.exists() else {}
    _check_keys(config, _MODEL_KEYS, path)
    declared = config.get("prompts") or {}
    for name, prompt in declared.items():
        if not isinstance(prompt, str | None):
            raise _refused(f"{path}: prompts.{name} = {prompt!r}; a string is accepted")
    prompts = {name: prompt or "" for name, prompt in declared.items()}
    if spec.prompts is not None:
        # sentence-transformers 5 writes empty prompts where nobody has declared any.
        if any(prompts.values()) and prompts != dict(spec.prompts):
            raise StartupError(
                f"models.toml: [models.{spec.name}.prompts] differs from prompts in {path}; "
                "remove the table",
                Exit.CONFIG,
            )
        prompts = dict(spec.prompts)
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(prompts) or "none"
        raise _refused(f"{path}: default_prompt_name = {default!r}; prompts are: {known}")
    return prompts, default


# -- JSON --------------------------------------------------------------------------------------


def _load(path: Path, kind: type[Any]) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refused(f"{path}: no such file; a sentence-transformers model has it") from None
    except (OSError, ValueError) as error:
        raise _refused(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise _refused(f"{path}: holds {type(value).__name__}; accepted: {kind.__name__}")
    return value


def _check_keys(config: Json, keys: Mapping[str, tuple[object, ...] | None], path: Path) -> None:
    _refuse_unknown(config, keys, str(path))
    for key, value in config.items():
        accepted = keys[key]
        if accepted is not None and value not in accepted:
            choices = ", ".join(map(repr, accepted))
            raise _refused(f"{path}: {key} = {value!r} is not supported; accepted: {choices}")


def _refuse_unknown(config: Json, known: Collection[str], where: str) -> None:
    for key in config:
        if key not in known:
            raise _refused(f"{where}: key {key!r} is unknown; known: {', '.join(known)}")


def _integer(config: Json, key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise _refused(f"{path}: {key} = {value!r}; an integer from 1 is accepted")
    return value


def _expect(found: int, expected: int, where: str) -> None:
    if found != expected:
        raise _refused(f"{where} = {found}; the step before gives {expected}")


def _inside(directory: Path, path: str) -> Path:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise _refused(f"{directory / 'modules.json'}: path = {path!r} leads out of the model")
    return directory / path


def _refused(message: str) -> StartupError:
    return StartupError(message, Exit.DATAERR)
