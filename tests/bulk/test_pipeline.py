"""Texts -> vectors: each the one the text has alone, and each bad text alone is bad."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.arrays.batch import Batch
from embedserve.arrays.types import Floats
from embedserve.bulk.pipeline import How, Pipeline, cut
from embedserve.config.models_toml import ModelSpec
from embedserve.model.cost import FREE_PADDING, MAX_PADDING, Shape
from embedserve.model.encoder import Backend, Encoder
from embedserve.model.loading import load_model
from embedserve.model.model import Model
from embedserve.model.stop import Stop
from tests import tiny


@given(
    st.lists(st.integers(1, 300), max_size=200),
    st.integers(1, 512),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_cut(lengths: list[int], budget: int, masked_up_to: int | None) -> None:
    """Every sequence once; passes within the budget but for one text alone, of near lengths."""
    shape = Shape("m", 1000.0, masked_up_to)
    passes = list(cut(lengths, shape, budget))
    assert sorted(i for numbers in passes for i in numbers) == list(range(len(lengths)))
    for numbers in passes:
        longest, shortest = lengths[numbers[0]], lengths[numbers[-1]]
        assert longest * len(numbers) <= budget or len(numbers) == 1
        assert longest - shortest <= max(FREE_PADDING, MAX_PADDING * longest)
        if masked_up_to is not None and longest > masked_up_to:
            assert longest == shortest


class Gate:
    """A backend that waits before each pass until it may go on, and counts the sequences."""

    def __init__(self, model: Model) -> None:
        self._backend = model.encoder.backend
        self.open, self.reached = threading.Event(), threading.Event()
        self.sequences: list[int] = []

    def embed(self, batch: Batch, alone: bool, stop: Stop) -> Floats:
        self.sequences.append(len(batch.input_ids))
        ended = threading.Event()

        def end() -> None:
            ended.set()
            self.open.set()

        stop.bind(end)
        self.reached.set()
        self.open.wait(30)
        if ended.is_set():
            raise RuntimeError("terminated")
        return self._backend.embed(batch, alone, stop)


@pytest.fixture
def model(tiny_artifacts: Path) -> Model:
    return load_model(ModelSpec("tiny"), tiny_artifacts / "tiny", "cpu")[0]


@pytest.fixture
def pipeline(model: Model) -> Iterator[Pipeline]:
    made = Pipeline(model, How("", "end", tiny.HIDDEN), 3, 16)
    yield made
    made.close()


WORDS = st.lists(st.sampled_from(("a", "b", "c", "d")), min_size=1, max_size=6).map(" ".join)


def test_vectors(pipeline: Pipeline) -> None:
    """Whatever is beside it, a text has its vector; None has none."""

    @settings(deadline=None)  # threads
    @given(st.lists(st.one_of(st.none(), WORDS), max_size=60))
    def check(texts: list[str | None]) -> None:
        embedded = pipeline.submit(texts).future.result(30)
        assert embedded.problems == {}
        assert embedded.vectors.shape == (len(texts), tiny.HIDDEN)
        for text, row in zip(texts, embedded.vectors, strict=True):
            if text is None:
                assert np.isnan(row).all()
            else:
                np.testing.assert_allclose(row, tiny.expected(text), atol=1e-6)
        assert embedded.tokens == sum(len(t.split()) + 2 for t in texts if t is not None)

    check()


def test_bad_texts(pipeline: Pipeline) -> None:
    """A text that fails, or whose vector is of no use, fails alone."""
    texts = ["a", "poison", "a b", "fail", "void", "x" * 2001, "b", "fail a", "fail"]
    embedded = pipeline.submit(texts).future.result(30)
    assert {place: problem.code for place, problem in embedded.problems.items()} == {
        1: "non_finite_embedding",
        3: "inference_failed",
        5: "input_too_long",
        7: "inference_failed",
        8: "inference_failed",
    }
    assert embedded.problems[5].message.startswith("the text has 2001 characters")
    assert np.isnan(embedded.vectors[[1, 3, 5, 7, 8]]).all()
    for place in (0, 2, 6):
        np.testing.assert_allclose(embedded.vectors[place], tiny.expected(texts[place]), atol=1e-6)
    # [CLS], [SEP] and one zero row: no vector is of zeros alone here.
    assert np.isfinite(embedded.vectors[4]).all()


def test_equal_texts_are_computed_once(model: Model) -> None:
    """A corpus repeats itself: each text of a chunk runs once, and all its rows get the vector."""
    gate = Gate(model)
    gate.open.set()
    model.encoder = _with(model, gate)
    pipeline = Pipeline(model, How("", "end", tiny.HIDDEN), 1, 256)
    embedded = pipeline.submit(["a", "b c", "a", "a", "b c"]).future.result(30)
    pipeline.close()
    assert sum(gate.sequences) == 2
    assert embedded.vectors.tolist() == [
        embedded.vectors[place].tolist() for place in (0, 1, 0, 0, 1)
    ]
    assert (pipeline.texts, pipeline.tokens, embedded.tokens) == (5, 17, 17)


def test_how(tiny_artifacts: Path) -> None:
    """A prompt before every text, Matryoshka dimensions, and the end that is cut."""
    model, _ = load_model(ModelSpec("matryoshka"), tiny_artifacts / "matryoshka", "cpu")
    pipeline = Pipeline(model, How("a ", "start", 2), 2, 16)
    embedded = pipeline.submit(["b", "d " * 7 + "c"]).future.result(30)
    pipeline.close()
    for row, seen in zip(embedded.vectors, ["a b", "d d d d d c"], strict=True):
        full = tiny.expected(seen)[:2]
        np.testing.assert_allclose(row, full / np.linalg.norm(full), atol=1e-6)
    assert embedded.truncated == 1


def test_truncation_as_an_error(model: Model) -> None:
    """With --truncate error a text of too many tokens is a bad row."""
    pipeline = Pipeline(model, How("", "error", tiny.HIDDEN), 2, 16)
    embedded = pipeline.submit(["a", "a b c d a b c d"]).future.result(30)
    pipeline.close()
    assert [problem.code for problem in embedded.problems.values()] == ["context_length_exceeded"]


def test_close(model: Model) -> None:
    """Closing ends the pass that runs, and waits for nothing else."""
    gate = Gate(model)
    model.encoder = _with(model, gate)
    pipeline = Pipeline(model, How("", "end", tiny.HIDDEN), 2, 4)
    work = pipeline.submit(["a", "b", "c", "a b", "a c", "b c"])
    assert gate.reached.wait(30)
    pipeline.close()
    assert len(gate.sequences) <= 2
    with pytest.raises(RuntimeError, match="terminated"):
        work.future.result(0)


def test_no_memory(model: Model) -> None:
    """Where memory ends for a text alone, the job ends: it is not the text's fault."""

    class Full:
        def embed(self, batch: Batch, alone: bool, stop: Stop) -> Floats:
            raise MemoryError("none left")

    model.encoder = _with(model, Full())
    pipeline = Pipeline(model, How("", "end", tiny.HIDDEN), 2, 16)
    with pytest.raises(MemoryError):
        pipeline.submit(["a", "b"]).future.result(30)
    pipeline.close()


def _with(model: Model, backend: Backend) -> Encoder:
    return replace(model.encoder, backend=backend)
