"""What models.toml may ask of a model: a lower limit, a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from export import build, wishes
from tests.export.checkpoints import LIMIT, bert, checkpoint, edit_json, roberta
from tests.export.conftest import Export

FILES = Path("the/model")


@pytest.mark.parametrize(("wish", "limit"), [(None, 514), (1, 1), (512, 512), (514, 514)], ids=str)
def test_a_limit_up_to_the_files_own(wish: int | None, limit: int) -> None:
    """The wish counts where there is one."""
    assert wishes.limit(ModelSpec("m", max_tokens=wish), 514, FILES) == limit


def test_a_larger_limit_is_refused() -> None:
    """Status 78, with both limits: past its own a model reads positions that it never learned."""
    with pytest.raises(StartupError) as caught:
        wishes.limit(ModelSpec("m", max_tokens=515), 514, FILES)
    assert caught.value.status == Exit.CONFIG
    for said in ("models.toml: [models.m] max_tokens = 515", str(FILES), "514"):
        assert said in str(caught.value)


def test_a_task_of_a_model_without_tasks_is_refused() -> None:
    """Status 78: no vector would change by it."""
    wishes.refuse_task(ModelSpec("m"), "bert")
    with pytest.raises(
        StartupError, match=r'\[models\.m\] task = "text-matching"; a bert'
    ) as caught:
        wishes.refuse_task(ModelSpec("m", task="text-matching"), "bert")
    assert caught.value.status == Exit.CONFIG


@pytest.mark.parametrize("wish", [ModelSpec("m", max_tokens=8), ModelSpec("m", task="t")], ids=str)
def test_a_changed_wish_makes_the_artifact_anew(wish: ModelSpec) -> None:
    """Both are in the record of what an artifact was made from."""
    assert build._wishes(wish) != build._wishes(ModelSpec("m"))


@pytest.mark.filterwarnings("ignore")
def test_files_that_promise_too_much(export_model: Export, tmp_path: Path) -> None:
    """Refused with the key and the number to write; with them, exact, in a graph of its own."""
    source = checkpoint(tmp_path / "model", roberta)
    edit_json(source / "sentence_bert_config.json", max_seq_length=LIMIT + 2)
    with pytest.raises(StartupError, match=f"set max_tokens = {LIMIT} in models.toml") as caught:
        export_model(ModelSpec("m"), tmp_path / "out", source)
    assert caught.value.status == Exit.DATAERR
    found = {}
    for limit in (LIMIT, LIMIT // 2):
        spec = ModelSpec("m", max_tokens=limit)
        result = export_model(spec, tmp_path / "out", source)
        assert not result.kept
        assert result.manifest.max_tokens == limit
        found[limit] = result.manifest.fingerprint
    assert found[LIMIT] != found[LIMIT // 2]


@pytest.mark.filterwarnings("ignore")
def test_a_wish_that_changes_nothing(export_model: Export, tmp_path: Path) -> None:
    """The files' own limit as a wish is the same model."""
    source = checkpoint(tmp_path / "model", bert)
    own = export_model(ModelSpec("m"), tmp_path / "own", source)
    wish = ModelSpec("m", max_tokens=LIMIT)
    wished = export_model(wish, tmp_path / "wished", source)
    assert wished.manifest.fingerprint == own.manifest.fingerprint
