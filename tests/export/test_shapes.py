"""A sample of `make test-models`, and what its last run says of every shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import catalogue, texts
from export.families.registry import FAMILIES
from export.steps import Nurseries
from tests.models import examination, records
from tests.models.records import Record
from tests.models.shapes import SAMPLE, SHAPES
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
    assert set(FAMILIES) <= proven


def test_every_model_of_the_catalogue_has_a_shape() -> None:
    known = catalogue.read()
    assert len(known.models) > 60
    assert {entry.shape for entry in known.models.values()} <= set(SHAPES)


def test_the_texts_are_others_than_the_exports() -> None:
    assert len(set(TEXTS)) == 100
    assert not set(TEXTS) & set(texts.TEXTS)
