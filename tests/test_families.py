"""Every family, pooling mode and finishing: exported, served, equal to sentence-transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.conftest import EXPORT_PYTHON, ROOT, Server, Start

NAMES = (
    "bert-cls",
    "xlm-roberta-prompts",
    "roberta",
    "mpnet",
    "distilbert-dense",
    "modernbert",
    "max",
    "mean-without-normalize",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
    "concatenation",
    "left-padding",
    "left-padding-absolute-positions",
    "dense-without-bias",
    "layer-norm",
    "two-dense",
    "saved-by-2",
)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of all of them, and the reference's vectors."""
    out = tmp_path_factory.mktemp("families")
    command = [str(EXPORT_PYTHON), "-m", "tests.reference.family_artifacts", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return out


@pytest.fixture(scope="module")
def server(start: Start, families: Path) -> Server:
    """One server of all of them."""
    models = tiny.models_toml(families / "models.toml", dict.fromkeys(NAMES, ""))
    return start(models, families / "artifacts")


def test_all_are_named(families: Path) -> None:
    """What tests/export makes is what is compared here."""
    assert {path.stem for path in families.glob("*.npz")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_served_vectors_are_those_of_sentence_transformers(
    server: Server, families: Path, name: str
) -> None:
    """100 texts in one request: each component within 1e-5, each token counted."""
    texts = json.loads((families / "texts.json").read_text(encoding="utf-8"))
    with np.load(families / f"{name}.npz", allow_pickle=False) as reference:
        vectors, counts = reference["vectors"], reference["counts"]
    answer = server.embed(model=name, input=texts)
    assert answer.status_code == 200, answer.text
    rows = np.array([d["embedding"] for d in answer.json()["data"]], np.float32)
    np.testing.assert_allclose(rows, vectors, rtol=0, atol=1e-5)
    assert answer.json()["usage"]["prompt_tokens"] == counts.sum()
