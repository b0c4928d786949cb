"""A sample of `make test-models`, and what its last run says of every shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.arrays.batch import Batch
from embedserve.arrays.types import Floats
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.stop import Stop
from export import catalogue, texts
from export.families.registry import FAMILIES
from export.steps import Nurseries
from tests.models import examination, records
from tests.models.comparison import Case, WrongError, compare, read
from tests.models.records import Record
from tests.models.shapes import SAMPLE, SHAPES, Words
from tests.models.texts import TEXTS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_shape_and_its_re_save(name: str, tmp_path: Path, nurseries: Nurseries) -> None:
    """Within 1e-5 of sentence-transformers, ids equal, the same bits in company; or refused."""
    shape = SHAPES[name]
    files = examination.make(shape, tmp_path / "files", nurseries)
    found = examination.examine(shape, files, False, tmp_path / "published", nurseries)
    _check(found, bool(shape.refused))
    if files.resaved is not None:
        found = examination.examine(shape, files, True, tmp_path / "resaved", nurseries)
        _check(found, bool(shape.resaved_refused))


def _check(record: Record, is_refused: bool) -> None:
    assert record.outcome == ("refused" if is_refused else "proven"), record.line


def test_the_last_run_is_whole() -> None:
    """Of every shape as published, and of every one that can be saved again."""
    results = records.read()
    assert list(results.shapes) == list(SHAPES)
    assert list(results.resaved) == [n for n, s in SHAPES.items() if s.resaved_refused is not None]


def test_the_last_run_found_nothing_wrong() -> None:
    results = records.read()
    for name, shape in SHAPES.items():
        _check(results.shapes[name], bool(shape.refused))
        if shape.resaved_refused is not None:
            _check(results.resaved[name], bool(shape.resaved_refused))
    assert {record.outcome for record in results.real.values()} == {"proven"}


def test_every_family_has_a_shape() -> None:
    """A family that is added is proven on files of its kind."""
    results = records.read()
    proven = {r.model_type for r in (*results.shapes.values(), *results.resaved.values())}
    assert set(FAMILIES) - {"new"} <= proven
    # The hub's name of gte: today's transformers, and so the manifest, knows the other.
    assert results.shapes["gte-new"].outcome == "proven"


def test_every_model_of_the_catalogue_has_a_shape() -> None:
    known = catalogue.read()
    assert len(known.models) > 60
    assert {entry.shape for entry in known.models.values()} <= set(SHAPES)


def test_the_texts_are_others_than_the_exports() -> None:
    assert len(set(TEXTS)) == 100
    assert not set(TEXTS) & set(texts.TEXTS)


class TestComparison:
    """What is not sentence-transformers' is found."""

    @pytest.fixture(scope="class")
    def made(
        self, tmp_path_factory: pytest.TempPathFactory, nurseries: Nurseries
    ) -> tuple[Path, Path, Sequence[Case]]:
        """An artifact, what the reference answered, and to which texts."""
        place = tmp_path_factory.mktemp("made")
        files = examination.make(SHAPES["albert"], place / "files", nurseries)
        record = examination.examine(SHAPES["albert"], files, False, place / "work", nurseries)
        assert record.outcome == "proven", record.line
        cases = [Case(text) for text in TEXTS]
        return place / "work" / "out" / "m", place / "work" / "answers.npz", cases

    @pytest.mark.parametrize(
        ("part", "change", "said"),
        [("vectors", 2e-5, "differs by 2"), ("vectors", np.nan, "nan"), ("ids", 1, "ids")],
        ids=["vector", "nan", "ids"],
    )
    def test_another_answer(
        self,
        made: tuple[Path, Path, Sequence[Case]],
        tmp_path: Path,
        part: str,
        change: float,
        said: str,
    ) -> None:
        """A component that is off by more than 1e-5, one that is no number, another id."""
        artifact, answers, cases = made
        with np.load(answers) as file:
            arrays: dict[str, Any] = dict(file)
        arrays[part].reshape(-1)[-1] += change
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(WrongError, match=said):
            compare(artifact, read(artifact), cases, tmp_path / "other.npz")

    def test_other_bits_in_company(
        self, made: tuple[Path, Path, Sequence[Case]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backend whose vectors depend on the batch, by less than the tolerance."""
        artifact, answers, cases = made
        own = OnnxBackend.embed

        def embed(
            self: OnnxBackend, batch: Batch, alone: bool = False, stop: Stop | None = None
        ) -> Floats:
            return own(self, batch, alone, stop) * np.float32(1 + 1e-6 * (len(batch.input_ids) > 1))

        monkeypatch.setattr(OnnxBackend, "embed", embed)
        with pytest.raises(WrongError, match="other bits"):
            compare(artifact, read(artifact), cases, answers)


@pytest.mark.parametrize(
    ("record", "words", "said"),
    [
        (Record("refused", "config.json: a = 1"), (), "should be proven"),
        (Record("refused", "config.json: a = 1"), ("b",), "does not say b"),
        (Record("refused", "config.json\nTraceback"), ("config.json",), "more than one line"),
        (Record("refused", "config.json", seconds=99.0), ("config.json",), "after 99"),
    ],
    ids=["unexpected", "other-words", "traceback", "late"],
)
def test_a_refusal_that_is_not_as_expected(record: Record, words: Words, said: str) -> None:
    found = examination.expected(record, words)
    assert found.outcome == "failed"
    assert said in found.line
