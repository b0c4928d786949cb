"""Reference numbers for nomic_bert from transformers 5.18's own NomicBertModel.

Run with a Python that has transformers 5.18 and torch 2.13, not with the export environment:

    python -m tests.reference.nomic_reference run CHECKPOINT IDS.npz OUT.npz
    python -m tests.reference.nomic_reference record tests/reference/nomic_small.json

`run` takes a checkpoint directory and an .npz of id sequences, each (t,) int64, and writes for
each name NAME the arrays NAME.hidden (t, h), NAME.v1 (h,), and NAME.v1.5.DIM (DIM,) float32.
`record` writes the file that the ordinary test suite compares with.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import NomicBertModel, __version__

from tests.reference.nomic_checkpoint import SMALL, random_ids, write_checkpoint

LENGTHS = {"short": 8, "long": 300}
SEED = 20
DIMS = (768, 512, 256, 128, 64)


def hidden_states(model: NomicBertModel, ids: NDArray[np.int64]) -> torch.Tensor:
    """Ids (t,) int64, alone and unpadded -> (t, h) float32."""
    input_ids = torch.from_numpy(ids)[None, :]
    with torch.inference_mode():
        states = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    last: torch.Tensor = states.last_hidden_state[0]
    return last


def finish(hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """The pipelines of the model cards: v1 at full size, v1.5 cut after the layer norm.

    https://huggingface.co/nomic-ai/nomic-embed-text-v1.5 ("Adjusting Dimensionality").
    """
    mean = hidden.mean(dim=0)
    normed = functional.layer_norm(mean, normalized_shape=(mean.shape[0],))
    vectors = {"v1": functional.normalize(mean, dim=0)}
    for dim in DIMS:
        if dim <= mean.shape[0]:
            vectors[f"v1.5.{dim}"] = functional.normalize(normed[:dim], dim=0)
    return vectors


def run(checkpoint: Path, ids: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
    """Every sequence of `ids` through the checkpoint; names as in the module's docstring."""
    model = NomicBertModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    arrays = {}
    for name, sequence in ids.items():
        hidden = hidden_states(model, sequence)
        arrays[f"{name}.hidden"] = hidden.numpy()
        arrays |= {f"{name}.{key}": value.numpy() for key, value in finish(hidden).items()}
    return arrays


def record() -> dict[str, object]:
    """The small checkpoint's numbers: every 37th hidden state, and the finished vectors."""
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), "transformers", SMALL, SEED)
        ids = {name: random_ids(SEED, t, SMALL[0]) for name, t in LENGTHS.items()}
        arrays = run(Path(directory), ids)
    rows = {name: a[::37] if name.endswith(".hidden") else a for name, a in arrays.items()}
    return {
        "made_by": "python -m tests.reference.nomic_reference record",
        "transformers": __version__,
        "torch": torch.__version__,
        "seed": SEED,
        "lengths": LENGTHS,
        "hidden_stride": 37,
        "arrays": {name: array.tolist() for name, array in rows.items()},
    }


def main(arguments: list[str]) -> None:
    if len(arguments) == 2 and arguments[0] == "record":
        Path(arguments[1]).write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    elif len(arguments) == 4 and arguments[0] == "run":
        with np.load(arguments[2], allow_pickle=False) as ids:
            arrays = run(Path(arguments[1]), dict(ids))
        np.savez(arguments[3], allow_pickle=False, **arrays)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
