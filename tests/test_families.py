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


# Each is compared on the same texts by tests/export, without HTTP: of what serving does beside, one
# of a kind here, and all of them in make test-slow.
SAMPLE = ("xlm-roberta-prompts", "concatenation", "left-padding-absolute-positions", "two-dense")
PARAMS = [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


@pytest.fixture(scope="module")
def names(request: pytest.FixtureRequest) -> list[str]:
    """Those that are asked for in this run."""
    items = [item for item in request.session.items if item.path == request.path]
    return [item.callspec.params["name"] for item in items]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def families(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of all of them, and the reference's vectors."""
    out = tmp_path_factory.mktemp("families")
    command = [str(EXPORT_PYTHON), "-m", "tests.reference.family_artifacts", str(out), *names]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return out


@pytest.fixture(scope="module")
def server(start: Start, families: Path, names: list[str]) -> Server:
    """One server of all of them."""
    models = tiny.models_toml(families / "models.toml", dict.fromkeys(names, ""))
    return start(models, families / "artifacts")


@pytest.mark.parametrize("name", PARAMS)
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
