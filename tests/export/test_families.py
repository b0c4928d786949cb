"""Every family, pooling mode and finishing: exported, then equal to sentence-transformers."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import tokenizers
import torch
from sentence_transformers import SentenceTransformer

from embedserve import artifact
from embedserve.arrays import finishing
from embedserve.arrays.batch import pad
from embedserve.config.models_toml import ModelSpec
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer
from export.build import Result
from export.texts import TEXTS
from tests.export.checkpoints import (
    HIDDEN,
    LIMIT,
    as_saved_by_2,
    as_saved_by_5,
    bert,
    checkpoint,
    dense,
    distilbert,
    edit_json,
    layer_norm,
    modernbert,
    mpnet,
    nomic_bert,
    roberta,
    xlm_roberta,
)
from tests.export.conftest import Export

# torch and transformers warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = {"query": "query: ", "passage": "passage: "}
IDENTITY, TANH = torch.nn.Identity(), torch.nn.Tanh()

Make = Callable[[Path], Path]
FAMILIES: dict[str, tuple[Make, dict[str, int]]] = {
    "bert-cls": (
        lambda d: checkpoint(d, bert, "cls"),
        {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4, "EmbedLayerNormalization": 1},
    ),
    "xlm-roberta-prompts": (
        lambda d: checkpoint(d, xlm_roberta, prompts=PROMPTS, default_prompt_name="query"),
        {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4},
    ),
    "roberta": (
        lambda d: checkpoint(d, roberta),
        {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4},
    ),
    "mpnet": (lambda d: checkpoint(d, mpnet), {"BiasGelu": 2, "LayerNormalization": 5}),
    "distilbert-dense": (
        lambda d: checkpoint(d, distilbert, after=[dense(HIDDEN, 24, TANH)], normalize=False),
        {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4, "EmbedLayerNormalization": 1},
    ),
    "modernbert": (
        lambda d: checkpoint(d, modernbert, "cls"),
        {"Gelu": 2, "LayerNormalization": 5},
    ),
}
VARIANTS: dict[str, Make] = {
    "max": lambda d: checkpoint(d, pooling="max", normalize=False),
    "mean-without-normalize": lambda d: checkpoint(d, normalize=False),
    "mean_sqrt_len_tokens": lambda d: checkpoint(d, pooling="mean_sqrt_len_tokens"),
    "weightedmean": lambda d: checkpoint(d, pooling="weightedmean"),
    "lasttoken": lambda d: checkpoint(d, pooling="lasttoken"),
    "concatenation": lambda d: checkpoint(d, pooling=("lasttoken", "mean", "cls", "max")),
    "left-padding": lambda d: checkpoint(d, roberta, "lasttoken", padding_side="left"),
    "left-padding-absolute-positions": lambda d: checkpoint(
        d, bert, "weightedmean", padding_side="left"
    ),
    "dense-without-bias": lambda d: checkpoint(d, after=[dense(HIDDEN, 48, IDENTITY, bias=False)]),
    "layer-norm": lambda d: checkpoint(d, after=[layer_norm(HIDDEN)]),
    "two-dense": lambda d: checkpoint(
        d,
        pooling=("mean", "cls"),
        after=[dense(2 * HIDDEN, 40, torch.nn.ReLU()), dense(40, 16, torch.nn.Sigmoid())],
    ),
    "saved-by-2": lambda d: as_saved_by_2(checkpoint(d, pooling=("cls", "max", "mean"))),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_equals_sentence_transformers_and_is_fused(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    """100 texts within 1e-5, ids identical; the fusions of its kind are in the graph."""
    make, fused = FAMILIES[name]
    result = exported(make(tmp_path / "model"), tmp_path / "out")
    assert_equal(tmp_path / "out" / "m", tmp_path / "model")
    assert result.fused is not None
    assert {op: result.fused.get(op, 0) for op in fused} == fused


@pytest.mark.parametrize("name", ["bert-cls", "modernbert", "nomic_bert"])
def test_half_precision_is_within_its_tolerance(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    """precision = "fp16": half the weights' bytes, and a certificate of its own tolerance."""
    wishes: dict[str, Any] = {}
    if name == "nomic_bert":
        nomic_bert(tmp_path / "model", limit=600)
        wishes = {"finishing": ("normalize",)}
    else:
        FAMILIES[name][0](tmp_path / "model")
    whole = exported(tmp_path / "model", tmp_path / "whole", **wishes)
    half = exported(tmp_path / "model", tmp_path / "half", precision="fp16", **wishes)
    weights = [r.manifest.files[artifact.WEIGHTS].bytes for r in (whole, half)]
    assert weights[1] < 0.6 * weights[0]
    assert half.manifest.precision == "fp16"
    assert half.manifest.parity is not None
    assert half.manifest.parity.tolerance == artifact.TOLERANCES["fp16"]
    assert half.manifest.parity.max_abs_difference > artifact.TOLERANCES["fp32"]
    assert half.manifest.fingerprint != whole.manifest.fingerprint


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_equals_sentence_transformers(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    """100 texts within 1e-5, ids identical."""
    source = VARIANTS[name](tmp_path / "model")
    exported(source, tmp_path / "out")
    assert_equal(tmp_path / "out" / "m", source)


def test_a_checkpoint_of_5_equals_the_same_saved_by_6(exported: Exported, tmp_path: Path) -> None:
    """The class paths of 5.x, some of which have moved since, name the same modules."""
    source = checkpoint(tmp_path / "saved-by-6")
    older = as_saved_by_5(Path(shutil.copytree(source, tmp_path / "saved-by-5")))
    exported(older, tmp_path / "out")
    assert_equal(tmp_path / "out" / "m", source)


def test_nomic_bert_as_the_hub_has_it(export_model: Export, tmp_path: Path) -> None:
    """Its remote code is replaced, and texts past 512 tokens take the path without a mask."""
    source = nomic_bert(tmp_path / "model", limit=600)
    spec = ModelSpec(
        name="m",
        finishing=("layer_norm", "normalize"),
        matryoshka=(32, 16),
        prompts={"search_query": "search_query: "},
    )
    result = export_model(spec, tmp_path / "out", source)
    assert result.manifest.masked_up_to == 512
    assert result.manifest.max_tokens == 600
    assert dict(result.manifest.prompts) == {"search_query": "search_query: "}
    assert result.fused is not None
    assert result.fused["LayerNormalization"] == 5


def test_prompts_are_those_of_sentence_transformers(exported: Exported, tmp_path: Path) -> None:
    """Each prompt, the default and none give sentence-transformers' vectors for that prompt."""
    source = checkpoint(tmp_path / "model", prompts=PROMPTS, default_prompt_name="passage")
    manifest = exported(source, tmp_path / "out").manifest
    assert dict(manifest.prompts) == {"document": "", **PROMPTS}
    assert manifest.default_prompt_name == "passage"
    for name, prompt in manifest.prompts.items():
        assert_equal(tmp_path / "out" / "m", source, prompt=prompt, prompt_name=name, texts=12)


def test_do_lower_case_of_sentence_bert_config_lowers(exported: Exported, tmp_path: Path) -> None:
    """A cased tokenizer under do_lower_case gives the ids of lower-case text."""
    source = as_saved_by_2(checkpoint(tmp_path / "model"))
    edit_json(source / "sentence_bert_config.json", do_lower_case=True)
    tokenizer = source / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8")
    tokenizer.write_text(text.replace('"lowercase": true', '"lowercase": false'), encoding="utf-8")
    edit_json(source / "tokenizer_config.json", do_lower_case=False)
    exported(source, tmp_path / "out")
    assert_equal(tmp_path / "out" / "m", source)
    first, second = encode(tmp_path / "out" / "m", ["PASTA and Cheese", "pasta and cheese"])
    assert first.tolist() == second.tolist()


def test_baked_padding_and_truncation_have_no_effect(exported: Exported, tmp_path: Path) -> None:
    """MiniLM's tokenizer.json pads and cuts at 128: the limit is the model's own."""
    source = checkpoint(tmp_path / "model")
    tokenizer = artifact_tokenizer(source)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(source / "tokenizer.json"))
    exported(source, tmp_path / "out")
    short, long = encode(tmp_path / "out" / "m", ["a", TEXTS[-1]])
    assert len(short) == 3
    assert len(long) == LIMIT


def test_finishing_and_matryoshka_of_models_toml(export_model: Export, tmp_path: Path) -> None:
    """The card's pipeline: mean, layer_norm, cut, normalize, at every declared dimension."""
    source = checkpoint(tmp_path / "model", normalize=False)
    spec = ModelSpec(name="m", finishing=("layer_norm", "normalize"), matryoshka=(32, 16, 8))
    manifest = export_model(spec, tmp_path / "out", source).manifest
    assert manifest.normalized
    assert [step.kind for step in manifest.finishing] == ["layer_norm", "normalize"]
    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    pooled = model.encode(["A man is eating pasta."], convert_to_tensor=True)
    pooled = torch.nn.functional.layer_norm(pooled, normalized_shape=(pooled.shape[1],))
    rows = embed(tmp_path / "out" / "m", encode(tmp_path / "out" / "m", ["A man is eating pasta."]))
    for size in (32, 16, 8):
        card = torch.nn.functional.normalize(pooled[:, :size], p=2, dim=1).numpy()
        np.testing.assert_allclose(finishing.truncate(rows, size), card, rtol=0, atol=1e-5)


class Exported(Protocol):
    """Export `source` as the model m into `out`."""

    def __call__(self, source: Path, out: Path, **wishes: Any) -> Result: ...


@pytest.fixture
def exported(export_model: Export) -> Exported:
    def make(source: Path, out: Path, **wishes: Any) -> Result:
        return export_model(ModelSpec(name="m", **wishes), out, source)

    return make


def random_texts(count: int) -> list[str]:
    """Texts of 1 to 60 pieces of the fixed texts, in any order."""
    draw = random.Random(7)  # noqa: S311  # the same texts every time
    pieces = [piece for text in TEXTS for piece in text.split(" ")]
    return [" ".join(draw.choices(pieces, k=draw.randint(1, 60))) for _ in range(count)]


def artifact_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


def encode(directory: Path, texts: list[str], prompt: str = "") -> list[np.ndarray]:
    return Tokenizer(directory, artifact.read(directory)).encode(texts, prompt).sequences


def embed(directory: Path, sequences: list[np.ndarray]) -> np.ndarray:
    manifest = artifact.read(directory)
    backend = OnnxBackend(directory, manifest)
    rows = []
    for start in range(0, len(sequences), 8):
        part = sequences[start : start + 8]
        rows.append(backend.embed(pad(part, manifest.pad_token_id, manifest.padding_side)))
    return np.concatenate(rows)


def assert_equal(
    directory: Path,
    source: Path,
    prompt: str = "",
    prompt_name: str | None = None,
    texts: int = 100,
) -> None:
    """Compare in mixed batches of 8 with sentence-transformers, a text at a time."""
    torch.set_num_threads(1)
    inputs = random_texts(texts)
    model = SentenceTransformer(
        str(source), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )
    sequences = encode(directory, inputs, prompt)
    chosen = {"prompt_name": prompt_name} if prompt_name else {"prompt": ""}
    expected = np.stack([model.encode(text, show_progress_bar=False, **chosen) for text in inputs])
    for text, ids in zip(inputs, sequences, strict=True):
        assert model.preprocess([prompt + text])["input_ids"][0].tolist() == ids.tolist()
    assert max(map(len, sequences)) == LIMIT
    np.testing.assert_allclose(embed(directory, sequences), expected, rtol=0, atol=1e-5)
