"""A tiny real artifact: a tokenizer of a few words, and a graph that looks up one row a token.

The hidden state of token i is TABLE[i], so expected vectors are computed by hand. The word
"poison" gives a NaN, "void" gives zeros, and "fail" an id past the table, which fails the pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from embedserve import artifact
from embedserve.arrays.finishing import normalize
from embedserve.arrays.types import Floats
from embedserve.artifact import FinishingStep, Golden, Manifest
from export import pooling_graph

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "poison", "void", "fail")
ID = {word: i for i, word in enumerate(WORDS)}
HIDDEN = 4
TABLE: Floats = np.array(
    [[(i * HIDDEN + j) % 7 + 1 for j in range(HIDDEN)] for i in range(10)], np.float32
)
TABLE /= 8
TABLE[ID["poison"]] = np.nan
TABLE[ID["void"]] = 0.0


def manifest(name: str = "tiny", **facts: Any) -> Manifest:
    """Return the manifest of the tiny model, some facts replaced."""
    base = Manifest(
        name=name,
        format=artifact.FORMAT,
        repository="owner/tiny",
        revision="0" * 40,
        model_type="lookup",
        hidden_size=HIDDEN,
        dimension=HIDDEN,
        vocabulary=len(WORDS),
        max_tokens=8,
        pooling=("mean",),
        finishing=(FinishingStep("normalize"),),
        matryoshka=(),
        prompts={},
        default_prompt_name=None,
        padding_side="right",
        pad_token_id=0,
        precision="fp32",
        masked_up_to=None,
        fingerprint="",
        created="2026-01-01T00:00:00Z",
    )
    return replace(base, **facts)


def expected(words: str) -> Floats:
    """Return the vector (HIDDEN,) of a text of known words, by hand: mean, normalize."""
    ids = [ID["[CLS]"], *(ID[word] for word in words.split()), ID["[SEP]"]]
    row: Floats = normalize(TABLE[ids].mean(axis=0, keepdims=True))[0]
    return row


def tokenizer() -> Tokenizer:
    """Words separated by spaces, [CLS] before and [SEP] after."""
    made = Tokenizer(WordLevel(dict(ID), unk_token="[UNK]"))  # noqa: S106  # a token, no secret
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])]
    )
    return made


def graph() -> onnx.ModelProto:
    """input_ids, attention_mask (b, t) int64 -> TABLE[input_ids] (b, t, HIDDEN) float32."""
    axes = ["b", "t"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*axes, HIDDEN])
    node = helper.make_node("Gather", ["table", "input_ids"], ["hidden"])
    table = numpy_helper.from_array(TABLE, "table")
    made = helper.make_graph([node], "tiny", inputs, [output], [table])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(directory: Path, name: str = "tiny", **facts: Any) -> Manifest:
    """Write a whole artifact to `directory`, as an export would."""
    directory.mkdir(parents=True)
    onnx.save(graph(), directory / artifact.GRAPH)
    modes = manifest(name, **facts).pooling
    pooling_graph.export(modes, HIDDEN, directory / artifact.POOLING_GRAPH)
    tokenizer().save(str(directory / artifact.TOKENIZER))
    texts = ("a", "a b c")
    ids = tuple(tuple(e.ids) for e in tokenizer().encode_batch(list(texts)))
    vectors = np.stack([expected(text) for text in texts])
    artifact.write_golden(directory, Golden(texts, ids, vectors))
    for step in facts.get("finishing", ()):
        for array in filter(None, (step.weight, step.bias)):
            np.save(directory / array, np.zeros(1, np.float32))
    return artifact.write(directory, manifest(name, **facts))


def models_toml(path: Path, models: Mapping[str, str], server: str = "") -> Path:
    """Write a models.toml with the given tables' bodies."""
    tables = "".join(f'[models."{name}"]\n{body}\n' for name, body in models.items())
    path.write_text(f"[server]\n{server}\n{tables}", encoding="utf-8")
    return path
