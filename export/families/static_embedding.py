"""StaticEmbedding and Model2Vec: one row per token, and their mean; no attention, no limit.

Reads the module's folder and builds its graph. This is not a family of transformers: config.json is
not read, and there is no pooling module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from embedserve.arrays.types import Floats
from export.families.family import Built
from export.families.graph_builder import GraphBuilder
from export.files import WEIGHTS, load, refuse_pickle, refused

# The manifest's model_type.
KIND = "static_embedding"

# Means no limit, as in sentence-transformers: no text has this many tokens.
NO_LIMIT = 2**31 - 1

# Tensors: sentence-transformers' table; Model2Vec's rows, each token's row, each token's factor.
_TABLE = "embedding.weight"
_ROWS, _MAPPING, _FACTORS = "embeddings", "mapping", "weights"
_ACCEPTED = ({_TABLE}, {_ROWS}, {_ROWS, _MAPPING}, {_ROWS, _FACTORS}, {_ROWS, _MAPPING, _FACTORS})
_FLOATS = ("F32", "F16", "BF16")
_DTYPES = {
    _TABLE: _FLOATS,
    _ROWS: _FLOATS,
    _MAPPING: ("I64", "I32", "I16", "U16", "U8"),
    _FACTORS: (*_FLOATS, "F64"),
}


@dataclass(frozen=True, slots=True)
class StaticEmbedding:
    """What the folder says: a row (hidden_size,) for each of `vocabulary` ids, and a limit."""

    vocabulary: int
    hidden_size: int
    max_tokens: int


def read(directory: Path) -> StaticEmbedding:
    """Read the module's folder. StartupError names the file and what is wrong in it."""
    refuse_pickle(directory)
    shapes = _shapes(directory / WEIGHTS[0])
    rows = shapes.get(_TABLE) or shapes[_ROWS]
    if len(rows) != 2 or not all(rows):
        raise refused(f"{directory / WEIGHTS[0]}: the table has shape {rows}; (ids, components)")
    count = rows[0]
    if _MAPPING in shapes:
        count = shapes[_MAPPING][0]
    for name in (_MAPPING, _FACTORS):
        if name in shapes and shapes[name] != (count,):
            raise refused(
                f"{directory / WEIGHTS[0]}: {name} has shape {shapes[name]}; accepted: ({count},)"
            )
    return StaticEmbedding(count, rows[1], _limit(directory / "tokenizer.json"))


def build(directory: Path, graph: GraphBuilder) -> Built:
    """Add the look-up of rows (b, t, h); the server takes their mean."""
    table = _table(directory / WEIGHTS[0])
    rows = graph.node("Gather", [graph.constant("embeddings", table), "input_ids"])
    return Built(rows, table.shape[1])


def without_special_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer as the module uses it: without the tokens that it puts around a text."""
    content = json.loads(tokenizer.to_str())
    return tokenizers.Tokenizer.from_str(json.dumps({**content, "post_processor": None}))


def _limit(path: Path) -> int:
    """The limit at which tokenizer.json itself truncates; sentence-transformers keeps it."""
    truncation = load(path, dict).get("truncation")
    if truncation is None:
        return NO_LIMIT
    found = {key: truncation.get(key) for key in ("direction", "max_length", "stride")}
    length = found["max_length"]
    is_plain = found["direction"] in (None, "Right") and not found["stride"]
    if not is_plain or type(length) is not int or length < 1:
        raise refused(
            f"{path}: truncation = {truncation!r} is not supported; accepted: null, or max_length "
            'from 1 with direction "Right" and without stride'
        )
    return length


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes. StartupError for a missing or unknown tensor, or a wrong type."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no dict
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            dtypes = {name: str(piece.get_dtype()) for name, piece in slices.items()}
    except Exception as error:  # the library raises its own bare Exception
        raise refused(f"{path}: cannot be read as safetensors: {error}") from error
    if set(shapes) not in _ACCEPTED:
        raise refused(
            f"{path}: holds {', '.join(sorted(shapes)) or 'nothing'}; accepted: {_TABLE}, or "
            f"{_ROWS} with or without {_MAPPING} and {_FACTORS}"
        )
    for name, dtype in dtypes.items():
        if dtype not in _DTYPES[name]:
            accepted = ", ".join(_DTYPES[name])
            raise refused(f"{path}: {name} is {dtype}; accepted: {accepted}")
    return shapes


def _table(path: Path) -> Floats:
    """One row for each id (vocabulary, h) float32, folded as sentence-transformers folds it."""
    from safetensors.torch import load_file  # numpy's reader does not know bfloat16

    tensors: dict[str, Any] = load_file(path)
    if _TABLE in tensors:
        return np.asarray(tensors[_TABLE].float().numpy())
    rows = tensors[_ROWS]
    if _MAPPING in tensors:
        mapping = tensors[_MAPPING].long()
        if len(mapping) and not 0 <= int(mapping.min()) <= int(mapping.max()) < len(rows):
            raise refused(f"{path}: {_MAPPING} points outside the {len(rows)} rows of {_ROWS}")
        rows = rows[mapping]
    if _FACTORS in tensors:
        rows = rows.float() * tensors[_FACTORS][:, None]
    return np.asarray(rows.float().numpy())
