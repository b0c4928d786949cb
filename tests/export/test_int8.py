"""int8: what its graphs compute, and what is certified of the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedserve import artifact
from embedserve.arrays.types import Floats
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.model.encoder import Encoder
from embedserve.model.loading import load_model
from embedserve.model.onnx_backend import OnnxBackend, options
from export import int8, prose, quality
from export.families.graph_builder import GraphBuilder
from tests.export.checkpoints import bert, checkpoint, modernbert, roberta, static
from tests.export.conftest import Export

# torch and transformers warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")

FLOATS = st.floats(-1e3, 1e3, width=32)
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=FLOATS
)


@given(matrix=MATRICES)
def test_columns_are_within_half_a_step(matrix: Floats) -> None:
    """Each weight is at most half of its column's scale away; a column of zeros stays zeros."""
    integers, scales = int8.quantize_columns(matrix)
    error = np.abs(integers.astype(np.float64) * scales - matrix)
    assert (error <= 0.501 * scales + 1e-30).all()
    assert np.abs(integers.astype(np.int64)).max() <= 127


@given(
    top=arrays.arrays(np.float32, 8, elements=st.floats(0, 1e3, width=32)),
    weights=arrays.arrays(np.float32, 8, elements=st.floats(0, 10, width=32)),
)
def test_smoothing_factors_have_no_size_of_their_own(top: Floats, weights: Floats) -> None:
    """Finite and positive, also for a column that is always zero; their mean factor is 1."""
    found = int8.smoothing_factors(top, weights)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert np.log(found.astype(np.float64)).mean() == pytest.approx(0, abs=1e-3)


def test_layers_that_share_weights(tmp_path: Path) -> None:
    """As in ALBERT: their activations share the factors, which are in the weights."""
    draw = np.random.default_rng(0)
    size = 64
    with (tmp_path / artifact.WEIGHTS).open("wb") as weights:
        graph = GraphBuilder(weights)
        words = draw.standard_normal((50, size)).astype(np.float32)
        words[:, 3] *= 40  # large in the first layer alone
        matrix = graph.constant("matrix", draw.standard_normal((size, size)).astype(np.float32))
        x = graph.node("Gather", [graph.constant("words", words), graph.ids])
        for layer in range(3):
            x = graph.node("Tanh", [graph.node("MatMul", [x, matrix])], f"layer_{layer}")
    graph.write(x, size, tmp_path / artifact.GRAPH)
    ids = draw.integers(0, 50, (4, 20))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    exact = run(tmp_path, feed)
    maxima = int8.column_maxima(tmp_path / artifact.GRAPH, [*ids])
    int8.convert(tmp_path / artifact.GRAPH, maxima)
    found = run(tmp_path, feed)
    assert (tmp_path / artifact.WEIGHTS).stat().st_size == words.nbytes + size * size
    assert artifact.deviation(found, exact, "fp32") > 0
    assert artifact.deviation(found, exact, "int8") < artifact.TOLERANCES["int8"]


def run(directory: Path, feed: dict[str, Any]) -> Floats:
    """The graph's rows (b * t, h)."""
    session = onnxruntime.InferenceSession(directory / artifact.GRAPH, options(1))
    rows: Floats = session.run(None, feed)[0]
    return rows.reshape(-1, rows.shape[-1])


def test_agreement_by_hand() -> None:
    """Two queries, four passages: one keeps both of its nearest, one keeps one of two."""
    expected = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    found = np.array([[0.7, 0.9, 0.1, 0.0], [0.1, 0.3, 0.2, 0.4]], np.float32)
    assert quality.agreement(expected, found, 2) == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert quality.agreement(expected, found, 1) == pytest.approx(1 / 2)
    assert quality.spearman(expected[:1], expected[:1] ** 3) == pytest.approx(1.0)


def test_the_corpus_is_fixed() -> None:
    """500 queries and 3,500 passages, each once; no query is in a passage."""
    corpus = prose.read()
    assert len(corpus.queries) == prose.QUERIES == 500
    assert len(corpus.passages) == 3_500
    assert len(set(corpus.texts)) == 4_000
    text = "\n".join(corpus.passages)
    assert not [query for query in corpus.queries if query in text]
    assert corpus.digest == "62f953badd9e311ff2397b66617997097043a1cd22e17ae3e94b67f883749433"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT."""
    return checkpoint(tmp_path_factory.mktemp("bert") / "model", bert)


def made(export_model: Export, source: Path, out: Path, **wishes: Any) -> artifact.Manifest:
    """Export it with wishes."""
    return export_model(ModelSpec(name="m", **wishes), out, source).manifest


def test_it_is_certified(export_model: Export, source: Path, tmp_path: Path) -> None:
    """The loss is in the manifest, measured and above its floor; fp32 has none."""
    whole = made(export_model, source, tmp_path / "whole")
    small = made(export_model, source, tmp_path / "small", precision="int8")
    assert whole.quality is None
    assert small.fingerprint != whole.fingerprint
    assert artifact.read(tmp_path / "small" / "m") == small
    found = small.quality
    assert found is not None
    assert (found.queries, found.passages, found.provider) == (500, 3_500, "cpu")
    assert artifact.FLOORS["int8"] == found.floor <= found.agreement_at_10 < 1
    assert 0.9 < found.queries_alone_at_10 < 1
    assert 0.9 < found.min_cosine < found.mean_cosine < 1
    assert small.parity is not None
    assert artifact.TOLERANCES["fp32"] < small.parity.max_abs_difference
    assert small.parity.max_abs_difference <= small.parity.tolerance == artifact.TOLERANCES["int8"]


def test_below_its_floor_nothing_is_published(
    export_model: Export, source: Path, tmp_path: Path
) -> None:
    """models.toml may ask for more than the precision gives."""
    with pytest.raises(StartupError, match=r"0\.9\d\d are found; at least 1\.000") as refused:
        made(export_model, source, tmp_path, precision="int8", agreement=1.0)
    assert refused.value.status == Exit.SOFTWARE
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("make", [bert, roberta, modernbert])
def test_bits_do_not_depend_on_company(export_model: Export, tmp_path: Path, make: Any) -> None:
    """Alone, in any pass of near or far lengths, and with every core: the same bits."""
    directory = checkpoint(tmp_path / "model", make)
    manifest = made(export_model, directory, tmp_path / "out", precision="int8")
    encoder = Encoder.of("m", manifest, OnnxBackend(tmp_path / "out" / "m", manifest, threads=2))
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, manifest.vocabulary, n) for n in draw.integers(1, 40, 64)]
    alone = np.stack([encoder.run([ids])[0] for ids in texts])
    for _ in range(20):
        members = draw.choice(64, draw.integers(2, 32), replace=False)
        assert np.array_equal(encoder.run([texts[i] for i in members]), alone[members])
    assert np.array_equal(encoder.run(texts[:1], alone=True)[0], alone[0])


def test_products_are_of_integers(export_model: Export, source: Path, tmp_path: Path) -> None:
    """No product with weights is left in float32, and no float32 weights of one in the file."""
    manifest = made(export_model, source, tmp_path, precision="int8")
    graph = onnx.load(tmp_path / "m" / artifact.GRAPH, load_external_data=False).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("MatMulIntegerToFloat") == 12  # six in each of two layers
    weights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert not [node for node in graph.node if node.op_type == "MatMul" and weights & {*node.input}]
    assert manifest.tables  # words are looked up in float32


def test_nothing_to_convert(export_model: Export, tmp_path: Path) -> None:
    """Static embeddings have no products: nothing would be faster."""
    directory = static(tmp_path / "model")
    with pytest.raises(StartupError, match="no products with weights") as refused:
        made(export_model, directory, tmp_path / "out", precision="int8")
    assert refused.value.status == Exit.DATAERR
    assert not (tmp_path / "out" / "m").exists()


def test_a_provider_without_it_refuses(export_model: Export, source: Path, tmp_path: Path) -> None:
    """One line that says what was found and what is accepted."""
    made(export_model, source, tmp_path, precision="int8")
    spec = replace(ModelSpec("m"), precision="int8")
    with pytest.raises(StartupError, match=r"precision .int8..* cuda does not run; .* fp32, fp16"):
        load_model(spec, tmp_path / "m", "cuda")
