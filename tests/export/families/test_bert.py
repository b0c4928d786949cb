"""BERT's relatives against transformers: where positions start, names, heads, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedserve.errors import StartupError
from export.families.bert import FAMILIES
from export.families.checkpoint import Checkpoint
from export.families.graph_builder import GraphBuilder
from export.families.layers import Layers
from tests.export.families import random_checkpoints as checkpoints
from tests.export.families.random_checkpoints import hf

VOCABULARY = 200
POSITIONS = 1010
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": POSITIONS,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**SIZE),
    "bert-relu": lambda: hf.BertConfig(**SIZE, hidden_act="relu", layer_norm_eps=1e-3),
    "bert-tanh-gelu": lambda: hf.BertConfig(**SIZE, hidden_act="gelu_new", type_vocab_size=1),
    "electra": lambda: hf.ElectraConfig(**SIZE, embedding_size=16),
    "electra-one-size": lambda: hf.ElectraConfig(**SIZE, embedding_size=32),
    "ernie": lambda: hf.ErnieConfig(**SIZE),
    "ernie-tasks": lambda: hf.ErnieConfig(**SIZE, use_task_id=True),
    "distilbert": lambda: hf.DistilBertConfig(**DISTILBERT),
    "distilbert-relu": lambda: hf.DistilBertConfig(**DISTILBERT, activation="relu"),
    "roberta": lambda: hf.RobertaConfig(**SIZE, type_vocab_size=1),
    "roberta-pad-4": lambda: hf.RobertaConfig(**SIZE, pad_token_id=4),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**SIZE),
    "camembert": lambda: hf.CamembertConfig(**SIZE),
    "data2vec": lambda: hf.Data2VecTextConfig(**SIZE),
}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("roberta"), hf.RobertaConfig(**SIZE))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_transformers(tmp_path: Path, config: Callable[[], Any]) -> None:
    checkpoints.assert_equal(checkpoints.write(tmp_path, config()), FAMILIES)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_bits_in_company(tmp_path: Path, kind: str) -> None:
    """A text's bits are the same alone and beside others, for either way of counting positions."""
    graph = checkpoints.Graph(checkpoints.write(tmp_path, CONFIGS[kind]()), FAMILIES)
    checkpoints.assert_same_bits(graph, VOCABULARY)


def test_pad_token_inside_a_text(roberta: Path) -> None:
    """RoBERTa's positions do not count a padding token, wherever it is; nor does the graph."""
    texts = [np.array([0, 7, 1, 9, 1, 1, 8, 2]), np.array([1, 7, 2]), np.array([0, 7, 8, 1])]
    together = checkpoints.Graph(roberta, FAMILIES).run(*texts)
    for found, want in zip(together, checkpoints.expected(roberta, texts), strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        (lambda: hf.RobertaConfig(**SIZE), POSITIONS - 2),
        (lambda: hf.BertConfig(**SIZE), POSITIONS),
    ],
    ids=["roberta", "bert"],
)
def test_longest_text(tmp_path: Path, config: Callable[[], Any], usable: int) -> None:
    """The graph says how many positions there are: RoBERTa's table has two that no text uses.

    A text of this length runs, here and in transformers.
    """
    made = config()
    checkpoints.write(tmp_path, made)
    family = FAMILIES[made.model_type]
    weights = Checkpoint(tmp_path, family.prefixes, family.ignored, shapes_only=True)
    assert family.build(made, Layers(GraphBuilder(None), weights)).positions == usable
    checkpoints.assert_equal(tmp_path, FAMILIES, [usable])


def test_no_square_matrix(roberta: Path) -> None:
    """A text of 1,000 tokens takes less than one matrix of its scores would: 8 MB for two heads."""
    path = checkpoints.build(roberta, FAMILIES)
    assert checkpoints.peak_memory(path, 1000) < 8


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (CONFIGS["bert"], hf.BertForPreTraining),
        (CONFIGS["bert"], hf.BertForSequenceClassification),
        (CONFIGS["roberta"], hf.RobertaForMaskedLM),
        (CONFIGS["xlm-roberta"], hf.XLMRobertaForTokenClassification),
        (CONFIGS["camembert"], hf.CamembertForMaskedLM),
        (CONFIGS["electra"], hf.ElectraForPreTraining),
        (CONFIGS["electra"], hf.ElectraForMaskedLM),
        (CONFIGS["distilbert"], hf.DistilBertForMaskedLM),
        (CONFIGS["distilbert"], hf.DistilBertForSequenceClassification),
        (CONFIGS["ernie"], hf.ErnieForMaskedLM),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_head_is_ignored(tmp_path: Path, config: Callable[[], Any], model_class: Any) -> None:
    """Files that were saved with a head have a prefix, and tensors that no vector needs."""
    checkpoints.assert_equal(checkpoints.write(tmp_path, config(), model_class), FAMILIES, [3, 20])


def test_norms_of_tensorflow(tmp_path: Path) -> None:
    """LayerNorm.gamma and LayerNorm.beta are read as transformers reads them."""
    checkpoints.write(tmp_path, CONFIGS["bert"](), hf.BertForPreTraining)
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    checkpoints.rename_weights(tmp_path, names)
    checkpoints.assert_equal(tmp_path, FAMILIES, [3, 20])


def test_buffers_are_ignored(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, CONFIGS["bert"]())
    buffer = torch.arange(POSITIONS)[None]
    checkpoints.edit_weights(tmp_path, **{"embeddings.position_ids": buffer})
    checkpoints.assert_equal(tmp_path, FAMILIES, [3, 20])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    config = hf.BertConfig(**SIZE)
    torch.manual_seed(0)
    hf.BertModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    checkpoints.assert_equal(tmp_path, FAMILIES, [3, 20])


# Of the hub's files, and of old transformers.
OLD_KEYS: dict[str, dict[str, Any]] = {
    "bert": {
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "gradient_checkpointing": False,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "output_past": True,
    },
    "electra": {"summary_first_dropout": 0.1, "position_embedding_type": "absolute"},
    "distilbert": {"tie_weights_": True, "output_hidden_states": True, "output_past": True},
    "roberta": {"position_embedding_type": "absolute", "output_past": True},
}


@pytest.mark.parametrize("kind", OLD_KEYS)
def test_keys_of_old_files(tmp_path: Path, kind: str) -> None:
    checkpoints.write(tmp_path, CONFIGS[kind]())
    checkpoints.edit_config(tmp_path, **OLD_KEYS[kind])
    checkpoints.assert_equal(tmp_path, FAMILIES, [3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"embedding_size": 16}, "'embedding_size' .* is unknown"),
        ({"pad_token_id": None}, "pad_token_id = None"),
        ({"intermediate_size": 40}, "has shape"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_configuration(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoints.write(tmp_path, hf.RobertaConfig(**SIZE))
    checkpoints.edit_config(tmp_path, **changes)
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder.layer.1.output.dense.bias", None, "is missing"),
        ("embeddings.token_type_embeddings.weight", None, "is missing"),
        ("encoder.layer.2.output.dense.bias", torch.zeros(32), "no place for"),
        ("encoder.layer.0.attention.self.distance_embedding.weight", torch.zeros(3, 4), "no place"),
    ],
    ids=["bias", "types", "layer", "relative"],
)
def test_refused_tensors(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    checkpoints.write(tmp_path, hf.BertConfig(**SIZE))
    checkpoints.edit_weights(tmp_path, **{name: tensor})
    with pytest.raises(StartupError, match=message):
        checkpoints.build(tmp_path, FAMILIES)
