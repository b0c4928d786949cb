"""all-mpnet-base-v2 on its real weights: from its packages to vectors that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedserve import artifact
from embedserve.arrays.batch import pad
from embedserve.config import models_toml
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer
from tests.export.conftest import Export

NAME = "all-mpnet-base-v2"
MODELS = Path(__file__).parents[2] / "models.toml"

# Components 0, 96, 192, ..., 672 of what sentence-transformers 6.2.0 gives for the same files, with
# transformers 5.24.0 and torch 2.13.0 on a CPU: SentenceTransformer(directory, device="cpu",
# model_kwargs={"dtype": torch.float32}).encode(text)[::96].
KNOWN = {
    "iPhone": (
        *(-0.00421463372, -0.0208954569, -0.0385978185, -0.011944931),
        *(-0.0300745517, -0.0517533645, 0.0445374437, -0.0204629879),
    ),
    "Samsung": (
        *(-0.0191743076, 0.0106250914, -0.0241240282, -0.0639437735),
        *(-0.0385374986, -0.0423029549, 0.0455047265, -0.00378713734),
    ),
    "The quick brown fox jumps over the lazy dog.": (
        *(-0.0342926569, -0.00862919446, 0.0312371925, 0.0402813852),
        *(-0.0255740117, -0.0450012386, -0.00169243023, 0.0175195541),
    ),
    "Où est la gare? 駅はどこですか。": (
        *(0.0252768416, -0.0278639179, 0.0257666074, 0.0612068996),
        *(-0.0410642587, 0.0539962612, 0.00511020049, -0.00531743374),
    ),
    "one " * 500: (  # past the limit of 384 tokens
        *(-0.0302094761, -0.00482252566, -0.0459178798, -0.0415024348),
        *(0.00849310122, 0.0296941549, -0.0198305771, 0.0151041243),
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_known_answers(export_model: Export, tmp_path: Path) -> None:
    """Its packages give the files that are pinned, and its artifact the vectors that are known."""
    spec = models_toml.read(MODELS).models[NAME]
    result = export_model(spec, tmp_path, None)
    directory = tmp_path / NAME
    manifest = artifact.read(directory)
    assert manifest == result.manifest
    assert (manifest.model_type, manifest.max_tokens, manifest.dimension) == ("mpnet", 384, 768)
    tokenizer, backend = Tokenizer(directory, manifest), OnnxBackend(directory, manifest)
    for text, expected in KNOWN.items():
        sequence = tokenizer.encode([text], "").sequences[0]
        batch = pad([sequence], manifest.pad_token_id, manifest.padding_side)
        row = backend.embed(batch)[0]
        assert float(np.linalg.norm(row)) == pytest.approx(1, abs=1e-5)
        assert np.abs(row[::96] - np.array(expected, np.float32)).max() <= 1e-5, text
