"""StaticEmbedding and Model2Vec's files against sentence-transformers: table, ids, vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from embedserve.arrays.batch import pad
from embedserve.arrays.pooling import BAG, pool
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH, TOKENIZER, WEIGHTS
from embedserve.errors import StartupError
from embedserve.model.tokenizer import Tokenizer
from export.families import static_embedding
from export.families.graph_builder import GraphBuilder
from tests import tiny

WORDS = ["[PAD]", "[UNK]", "[CLS]", *"abcdefgh"]
SIZE = 16
DRAW = np.random.default_rng(0)
ROWS = torch.from_numpy(DRAW.standard_normal((len(WORDS), SIZE)).astype(np.float32))
MAPPING = torch.tensor([4, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4])
FACTORS = torch.linspace(0.1, 2.0, len(WORDS))
FILES: dict[str, dict[str, torch.Tensor]] = {
    "sentence-transformers": {"embedding.weight": ROWS},
    "model2vec": {"embeddings": ROWS},
    "half": {"embeddings": ROWS.half()},
    "mapping": {"embeddings": ROWS[:5], "mapping": MAPPING},
    "weights": {"embeddings": ROWS, "weights": FACTORS},
    "both": {"embeddings": ROWS[:5].half(), "mapping": MAPPING, "weights": FACTORS.double()},
}
TEXTS = ["a b c", "a", "nothing known", " ", "", "h h h a", "a b " * 700, "[CLS] a"]


def write(directory: Path, tensors: dict[str, torch.Tensor], **truncation: Any) -> Path:
    """The module's folder, its tokenizer with tokens around a text, which the module leaves out."""
    tokenizer = tokenizers.Tokenizer(
        WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")  # noqa: S106  # a token, no secret
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_padding(length=9)
    if truncation:
        tokenizer.enable_truncation(**truncation)
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file({name: t.clone() for name, t in tensors.items()}, directory / "model.safetensors")
    return directory


class Served:
    """The artifact's parts, run by embedserve's own code."""

    def __init__(self, module: Path, out: Path) -> None:
        facts = static_embedding.read(module)
        with (out / WEIGHTS).open("wb") as weights:
            graph = GraphBuilder(weights)
            built = static_embedding.build(module, graph)
        graph.write(built.output, built.hidden_size, out / GRAPH)
        assert built.hidden_size == facts.hidden_size
        own = tokenizers.Tokenizer.from_file(str(module / "tokenizer.json"))
        static_embedding.without_special_tokens(own).save(str(out / TOKENIZER))
        manifest = tiny.manifest(
            pooling=(BAG,), max_tokens=facts.max_tokens, vocabulary=facts.vocabulary
        )
        self._tokenizer = Tokenizer(out, manifest)
        self._session = onnxruntime.InferenceSession(out / GRAPH)

    def ids(self, texts: list[str]) -> list[Ints]:
        return self._tokenizer.encode(texts).sequences

    def vectors(self, texts: list[str]) -> Floats:
        """All texts in one padded pass."""
        batch = pad(self.ids(texts), 0, "right")
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        [hidden] = self._session.run(None, feed)
        return pool((BAG,), hidden, batch.attention_mask)


def reference(module: Path) -> Any:
    """sentence-transformers on the folder, in float32."""
    loaded: Any = StaticEmbedding.load(str(module))
    return SentenceTransformer(modules=[loaded], device="cpu").float()


@pytest.mark.parametrize("tensors", FILES.values(), ids=FILES)
def test_equals_sentence_transformers(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Vectors alone and in one pass, of texts without tokens too; half precision is widened."""
    module = tmp_path / "module"
    module.mkdir()
    served, model = Served(write(module, tensors), tmp_path), reference(module)
    together = served.vectors(TEXTS)
    for text, beside in zip(TEXTS, together, strict=True):
        alone = served.vectors([text])[0]
        np.testing.assert_array_equal(alone, beside)
        np.testing.assert_allclose(alone, model.encode(text), rtol=0, atol=2e-6)
        ids = model.preprocess([text])["input_ids"]
        np.testing.assert_array_equal(served.ids([text])[0], ids)


def test_no_limit(tmp_path: Path) -> None:
    facts = static_embedding.read(write(tmp_path, FILES["sentence-transformers"]))
    assert facts.max_tokens == 2**31 - 1
    assert (facts.vocabulary, facts.hidden_size) == (len(WORDS), SIZE)


def test_truncation_of_the_file_is_kept(tmp_path: Path) -> None:
    """sentence-transformers leaves the truncation of tokenizer.json as it is: it is the limit."""
    module = tmp_path / "module"
    module.mkdir()
    write(module, FILES["sentence-transformers"], max_length=5)
    assert static_embedding.read(module).max_tokens == 5
    text = "a b c d e f g"
    ids = reference(module).preprocess([text])["input_ids"]
    np.testing.assert_array_equal(Served(module, tmp_path).ids([text])[0], ids)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds nothing"),
        ({"embedding.weight": ROWS, "bias": ROWS}, "holds bias, embedding.weight"),
        ({"embedding.weight": ROWS[0]}, "has shape"),
        ({"embedding.weight": ROWS.double()}, "is F64; accepted"),
        ({"embeddings": ROWS.to(torch.int8)}, "is I8; accepted"),
        ({"mapping": MAPPING}, "holds mapping"),
        ({"embeddings": ROWS, "weights": FACTORS[:3]}, r"weights has shape \(3,\)"),
    ],
    ids=["nothing", "more", "vector", "double", "quantized", "mapping", "short"],
)
def test_refused_tensors(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        static_embedding.read(write(tmp_path, tensors))


def test_mapping_out_of_the_table(tmp_path: Path) -> None:
    write(tmp_path, {"embeddings": ROWS[:4], "mapping": MAPPING})
    with pytest.raises(StartupError, match="points outside the 4 rows"):
        static_embedding.build(tmp_path, GraphBuilder(None))


@pytest.mark.parametrize(
    "truncation", [{"max_length": 5, "direction": "left"}, {"max_length": 5, "stride": 2}]
)
def test_refused_truncation(tmp_path: Path, truncation: dict[str, Any]) -> None:
    write(tmp_path, FILES["sentence-transformers"], **truncation)
    with pytest.raises(StartupError, match="truncation"):
        static_embedding.read(tmp_path)


def test_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, FILES["sentence-transformers"])
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(StartupError, match="which can run code"):
        static_embedding.read(tmp_path)


def test_wrong_json(tmp_path: Path) -> None:
    write(tmp_path, FILES["sentence-transformers"])
    (tmp_path / "tokenizer.json").write_text(json.dumps({"truncation": {"max_length": 0}}), "utf-8")
    with pytest.raises(StartupError, match="truncation"):
        static_embedding.read(tmp_path)
