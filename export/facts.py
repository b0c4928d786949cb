"""What a model's files say: pooling, finishing, limit, prompts, dimension.

Nothing is guessed: an unknown key or value is refused by file and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import tokenizers

from embedserve.arrays.pooling import BAG
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from export import config_keys, modules, tokenizer_keys, wishes
from export.families import static_embedding
from export.families.family import Family
from export.families.registry import FAMILIES
from export.files import (
    Json,
    check_keys,
    inside,
    integer,
    load,
    refuse_pickle,
    refused,
    weight_bytes,
)
from export.modules import Finish

# From here on a model_max_length means none: transformers writes 1e30 where there is no limit.
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a model's files, and the operator's wishes beside them, say about its vectors.

    `directory` holds config.json, weights and tokenizer. `hidden_size` is the size of its token
    embeddings, `dimension` that of the final vector. `max_tokens` includes special tokens;
    `own_limit` is the files' own limit, without the wish for a lower one, None if
    sentence-transformers never truncates. `weight_bytes` is the size of the weights in float32.
    `replaced` maps paths in the model to the content that today's libraries must see there.
    """

    directory: Path
    model_type: str
    hidden_size: int
    dimension: int
    vocabulary: int
    max_tokens: int
    own_limit: int | None
    pooling: tuple[str, ...]
    finishing: tuple[Finish, ...]
    matryoshka: tuple[int, ...]
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    pad_token_id: int
    weight_bytes: int
    replaced: Mapping[str, Json]


def read(directory: Path, spec: ModelSpec) -> Facts:
    """Read a sentence-transformers directory. StartupError (65) names the file and the key."""
    refuse_kernels()
    listed = modules.read(directory / "modules.json")
    root = inside(directory, listed[0].path)
    if listed[0].kind == modules.STATIC:
        return _static(directory, root, listed[1:], spec)
    config, replaced = _config(root / "config.json")
    sentence = _sentence_config(root)
    hidden_size, pooling = modules.pooling(inside(directory, listed[1].path) / "config.json")
    finishing, dimension = modules.finishing(directory, listed[2:], hidden_size * len(pooling))
    refuse_pickle(root)
    prompts, default_prompt_name = _prompts(directory / "config_sentence_transformers.json", spec)
    tokenizer_config = _tokenizer_config(root / "tokenizer_config.json")
    finishing = _with_wishes(finishing, spec)
    own_limit = _max_tokens(sentence, tokenizer_config, config, root)
    wishes.refuse_task(spec, config["model_type"])
    return Facts(
        directory=root,
        model_type=config["model_type"],
        hidden_size=hidden_size,
        dimension=dimension,
        vocabulary=integer(config, "vocab_size", root / "config.json"),
        max_tokens=wishes.limit(spec, own_limit, root),
        own_limit=own_limit,
        pooling=pooling,
        finishing=finishing,
        matryoshka=_matryoshka(spec, dimension),
        prompts=MappingProxyType(prompts),
        default_prompt_name=default_prompt_name,
        pad_token_id=_pad_token_id(tokenizer_config, root),
        weight_bytes=weight_bytes(root),
        replaced={}
        if replaced is None
        else {f"{listed[0].path}/config.json".lstrip("/"): replaced},
    )


def _static(
    directory: Path, root: Path, following: Sequence[modules.Module], spec: ModelSpec
) -> Facts:
    """The facts of static embeddings: the mean of the tokens' rows; no special tokens."""
    found = static_embedding.read(root)
    finishing, dimension = modules.finishing(directory, following, found.hidden_size)
    prompts, default_prompt_name = _prompts(directory / "config_sentence_transformers.json", spec)
    wishes.refuse_task(spec, static_embedding.KIND)
    wishes.refuse_limit(spec, root)
    return Facts(
        directory=root,
        model_type=static_embedding.KIND,
        hidden_size=found.hidden_size,
        dimension=dimension,
        vocabulary=found.vocabulary,
        max_tokens=found.max_tokens,
        own_limit=None,
        pooling=(BAG,),
        finishing=_with_wishes(finishing, spec),
        matryoshka=_matryoshka(spec, dimension),
        prompts=MappingProxyType(prompts),
        default_prompt_name=default_prompt_name,
        pad_token_id=0,  # any row: padding has no weight
        weight_bytes=4 * found.vocabulary * found.hidden_size,
        replaced=MappingProxyType({}),
    )


def refuse_kernels() -> None:
    """Refuse to run beside `kernels`: with it, transformers downloads and runs code of configs."""
    if find_spec("kernels") is not None:
        raise StartupError(
            "the package kernels is installed: transformers would run code that a model's "
            "config.json names; uninstall it: pip uninstall kernels",
            Exit.CONFIG,
        )


# -- config.json, sentence_bert_config.json, tokenizer_config.json -----------------------------


# If `kernels` is installed, transformers 4.56 to 5.2 download and run what these name.
_ATTENTION: Mapping[str, tuple[str | None, ...]] = {
    "_attn_implementation_internal": (None,),
    "_attn_implementation": (None, "eager", "sdpa"),
    "attn_implementation": (None, "eager", "sdpa"),
}


def _config(path: Path) -> tuple[Json, Json | None]:
    """Return config.json, and what today's transformers must read in its place, or None."""
    config: Json = load(path, dict)
    for key, accepted in _ATTENTION.items():
        if config.get(key) not in accepted:
            raise refused(f"{path}: {key} = {config[key]!r} may name remote code; remove it")
    if (adapter := path.parent / "adapter_config.json").exists():
        raise refused(f"{adapter}: adapters are not supported; merge it into the model first")
    family = _family(config, path)
    view = None if family.view is None else family.view(config)
    keys = {**dict.fromkeys(("auto_map", *_ATTENTION)), **family.keys}
    config_keys.check(config, keys, path)
    return config if view is None else view, view


def _family(config: Json, path: Path) -> Family:
    """The model's family. StartupError if it is unknown, or does not replace the files' code."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if "auto_map" in config and not (family and family.auto_map):
        raise refused(f"{path}: auto_map names remote code; it is never run")
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise refused(f"{path}: model_type = {kind!r} is not supported; accepted: {known}")
    return family


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
        config: Json = load(path, dict) if path.exists() else {}
        if config:
            check_keys(config, _SENTENCE_KEYS, path)
            return config
    return {}


def _tokenizer_config(path: Path) -> Json:
    if not (tokenizer := path.parent / "tokenizer.json").is_file():
        raise refused(f"{tokenizer}: no such file; only tokenizers in this form are supported")
    config: Json = load(path, dict) if path.exists() else {}
    tokenizer_keys.check(config, path)
    return config


def _pad_token_id(config: Json, root: Path) -> int:
    token = config.get("pad_token")
    path = root / "special_tokens_map.json"
    if token is None and path.exists():
        token = load(path, dict).get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise refused(f"{root / 'tokenizer.json'}: cannot be read: {error}") from error
    number = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        raise refused(
            f"{root / 'tokenizer_config.json'}: pad_token = {token!r}; a token of tokenizer.json "
            "is accepted"
        )
    return int(number)


def _max_tokens(sentence: Json, tokenizer_config: Json, config: Json, root: Path) -> int:
    """The limit as sentence-transformers sets it.

    max_seq_length alone when it is given; else the tokenizer's model_max_length, at most
    config.json's max_position_embeddings.
    """
    limit = sentence.get("max_seq_length")
    if limit is None:
        limits = [tokenizer_config.get("model_max_length"), config.get("max_position_embeddings")]
        found = [v for v in limits if isinstance(v, int | float) and 0 < v < _NO_LIMIT]
        limit = int(min(found)) if found else None
    if type(limit) is not int or limit < 1:
        raise refused(
            f"{root / _SENTENCE_CONFIGS[0]}: max_seq_length = {limit!r}, and neither "
            "tokenizer_config.json model_max_length nor config.json max_position_embeddings says "
            "how many tokens the model takes"
        )
    return limit


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
    # The cards call torch's functional layer_norm without weights; its default eps is 1e-5.
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
    """Return the prompts and the default's name, from the file, or the spec if it has none."""
    config: Json = load(path, dict) if path.exists() else {}
    check_keys(config, _MODEL_KEYS, path)
    declared = config.get("prompts") or {}
    for name, prompt in declared.items():
        if not isinstance(prompt, str | None):
            raise refused(f"{path}: prompts.{name} = {prompt!r}; a string is accepted")
    prompts = {name: prompt or "" for name, prompt in declared.items()}
    if spec.prompts is not None:
        # sentence-transformers 5 writes empty prompts when none were declared.
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
        raise refused(f"{path}: default_prompt_name = {default!r}; prompts are: {known}")
    return prompts, default
