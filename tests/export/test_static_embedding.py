"""Models of static embeddings: exported, compared, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules.normalize import Normalize

from embedserve.arrays.pooling import BAG
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from export import facts, modules
from tests.export.checkpoints import HIDDEN, VOCABULARY, static, write_json
from tests.export.conftest import Export

pytestmark = pytest.mark.filterwarnings("ignore")


def test_equals_sentence_transformers(export_model: Export, tmp_path: Path) -> None:
    """All texts, those without tokens too; what the manifest says of such a model."""
    source = static(tmp_path / "model")
    manifest = export_model(ModelSpec("m"), tmp_path / "out", source).manifest
    assert manifest.pooling == (BAG,)
    assert manifest.is_bag
    assert manifest.max_tokens == 2**31 - 1
    assert (manifest.dimension, manifest.vocabulary) == (HIDDEN, VOCABULARY)
    assert [table.name for table in manifest.tables] == ["embeddings"]
    assert manifest.parity is not None
    assert manifest.parity.max_abs_difference <= 1e-6
    assert manifest.parity.min_cosine > 0.999999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_normalized(export_model: Export, tmp_path: Path, dtype: Any) -> None:
    """The reference is in float32, whatever the table's precision is."""
    source = static(tmp_path / "model", Normalize(), dtype=dtype)
    result = export_model(ModelSpec("m"), tmp_path / "out", source)
    assert result.manifest.normalized
    assert result.manifest.parity is not None
    assert result.manifest.parity.max_abs_difference <= 1e-6


def test_saved_by_2(tmp_path: Path) -> None:
    """The class has had other paths in modules.json, and its own folder."""
    source = static(tmp_path / "model")
    folder = source / "0_StaticEmbedding"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (source / name).rename(folder / name)
    kind = "sentence_transformers.models.StaticEmbedding"
    write_json(source / "modules.json", [{"idx": 0, "path": folder.name, "type": kind}])
    found = facts.read(source, ModelSpec("m"))
    assert found.directory == folder
    assert found.own_limit is None


def test_a_limit_is_refused(tmp_path: Path) -> None:
    """sentence-transformers has none that could be lowered: nothing to compare with."""
    with pytest.raises(StartupError, match="max_tokens = 512") as caught:
        facts.read(static(tmp_path / "model"), ModelSpec("m", max_tokens=512))
    assert caught.value.status == Exit.CONFIG


def test_a_pooling_module_after_it_is_refused(tmp_path: Path) -> None:
    source = static(tmp_path / "model", Normalize())
    listed = json.loads((source / "modules.json").read_text("utf-8"))
    listed[1]["type"] = "sentence_transformers.models.Pooling"
    write_json(source / "modules.json", listed)
    with pytest.raises(StartupError, match="modules are StaticEmbedding, Pooling"):
        facts.read(source, ModelSpec("m"))


def test_a_pooling_module_has_no_mode_bag(tmp_path: Path) -> None:
    """The mode is this module's own."""
    write_json(tmp_path / "config.json", {"embedding_dimension": 4, "pooling_mode": BAG})
    with pytest.raises(StartupError, match="pooling_mode = 'bag'; one or several of cls"):
        modules.pooling(tmp_path / "config.json")


def test_a_tokenizer_with_more_ids_than_rows(export_model: Export, tmp_path: Path) -> None:
    source = static(tmp_path / "model")
    rows = load_file(source / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": rows[:-1].clone()}, source / "model.safetensors")
    with pytest.raises(StartupError, match=r"has rows for|cannot run it"):
        export_model(ModelSpec("m"), tmp_path / "out", source)
