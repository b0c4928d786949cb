"""The encoders of T5, mT5 and umT5 against transformers: gates, biases by distance, whole files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedserve.errors import StartupError
from export.families.t5 import FAMILIES
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
SIZE = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "relu": {"feed_forward_proj": "relu"},
    "gated-gelu": {"feed_forward_proj": "gated-gelu"},
    "gated-silu": {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3},
    "buckets": {"relative_attention_num_buckets": 14, "relative_attention_max_distance": 40},
}


def t5(directory: Path, kind: str = "T5", whole: bool = False, **options: Any) -> Path:
    """An encoder of `kind`, or with `whole` all of it; its biases by distance are large."""
    model_class = getattr(hf, f"{kind}ForConditionalGeneration" if whole else f"{kind}EncoderModel")
    checkpoints.write(directory, getattr(hf, f"{kind}Config")(**SIZE | options), model_class)
    draw = torch.Generator().manual_seed(3)
    buckets = options.get("relative_attention_num_buckets", 32)
    layers = range(2) if kind == "UMT5" else range(1)
    biases = {
        f"encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight": torch.randn(
            (buckets, 2), generator=draw
        )
        for n in layers
    }
    checkpoints.edit_weights(directory, **biases)
    return directory


def assert_equal(
    directory: Path, kind: str = "T5", lengths: Sequence[int] = checkpoints.LENGTHS
) -> None:
    """As checkpoints.assert_equal, with the class that sentence-transformers loads."""
    graph = checkpoints.Graph(directory, FAMILIES)
    texts = checkpoints.sequences(VOCABULARY, lengths)
    loader = getattr(hf, f"{kind}EncoderModel")
    model = loader.from_pretrained(directory, dtype=torch.float32).eval()
    for ids, beside in zip(texts, graph.run(*texts), strict=True):
        with torch.inference_mode():
            want = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        tolerance = 2e-6 * max(1.0, float(np.abs(want).max()))
        for found in (graph.run(ids)[0], beside):
            np.testing.assert_allclose(found, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_equals_transformers(tmp_path: Path, kind: str) -> None:
    assert_equal(t5(tmp_path, kind), kind)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_equal(t5(tmp_path, **options))


@pytest.mark.parametrize("kind", ["T5", "UMT5"])
def test_bits_in_company(tmp_path: Path, kind: str) -> None:
    checkpoints.assert_same_bits(checkpoints.Graph(t5(tmp_path, kind), FAMILIES), VOCABULARY)


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_decoder_is_ignored(tmp_path: Path, kind: str) -> None:
    """Files of the whole model, with the keys of the hub's."""
    t5(tmp_path, kind, whole=True)
    checkpoints.edit_config(
        tmp_path,
        is_encoder_decoder=True,
        n_positions=512,
        output_past=True,
        tokenizer_class="T5Tokenizer",
        tie_word_embeddings=False,
        scalable_attention=True,
    )
    assert_equal(tmp_path, kind, [3, 20])


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_embedding_by_either_name(tmp_path: Path, name: str) -> None:
    """The encoder's table has one of two names."""
    t5(tmp_path)
    checkpoints.rename_weights(tmp_path, {"shared.weight": name})
    assert_equal(tmp_path, lengths=[3, 20])


def test_two_embeddings(tmp_path: Path) -> None:
    """Where a file has both and they differ, transformers runs the encoder's own."""
    t5(tmp_path)
    own = torch.randn((VOCABULARY, 32), generator=torch.Generator().manual_seed(5))
    checkpoints.edit_weights(tmp_path, **{"encoder.embed_tokens.weight": own})
    assert_equal(tmp_path, lengths=[3, 20])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-mish", "dense_act_fn": "mish"}, "'gated-mish' is not"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"rope_theta": 1.0}, "'rope_theta' .* is unknown"),
    ],
    ids=["activation", "decoder", "unknown"],
)
def test_refused_configuration(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoints.edit_config(t5(tmp_path), **changes)
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("shared.weight", None, "'shared.weight' is missing"),
        ("encoder.block.1.layer.1.DenseReluDense.wo.weight", None, "is missing"),
        ("encoder.block.1.layer.0.SelfAttention.q.bias", torch.zeros(24), "no place for"),
    ],
    ids=["embedding", "product", "bias"],
)
def test_refused_tensors(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    checkpoints.edit_weights(t5(tmp_path), **{name: tensor})
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)
