"""Small checkpoints with random weights; their family's graph, and transformers, run over both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from safetensors.torch import load_file, save_file

from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH, WEIGHTS
from export import config_keys
from export.families.attention import LONGEST_MASKED
from export.families.checkpoint import Checkpoint
from export.families.family import Family
from export.families.graph_builder import GraphBuilder
from export.families.layers import Layers

hf: Any = transformers  # untyped
# Lengths on either side of where attention takes another path.
LENGTHS = (2, 3, 40, 17, LONGEST_MASKED, LONGEST_MASKED + 1, 700)


def write(directory: Path, config: Any, model_class: Any = None, seed: int = 0) -> Path:
    """Save a model of `config` (its base model, or `model_class`), its weights all drawn anew.

    Norms' weights and biases, too, which start as ones and zeros: a mistake in one shows.
    """
    torch.manual_seed(seed)
    model = model_class(config) if model_class else hf.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def edit_config(directory: Path, **changes: Any) -> None:
    """Set keys of config.json."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    write_config(directory, config | changes)


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of model.safetensors; None removes one."""
    path = directory / "model.safetensors"
    tensors: dict[str, Any] = load_file(path) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def rename_weights(directory: Path, names: Mapping[str, str]) -> None:
    """Replace parts of the tensors' names."""
    path = directory / "model.safetensors"
    renamed = {}
    for key, tensor in load_file(path).items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = tensor
    save_file(renamed, path)


class Graph:
    """The family's graph of a checkpoint, written beside it and opened."""

    def __init__(self, directory: Path, families: Mapping[str, Family]) -> None:
        self.path = build(directory, families)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )

    def run(self, *sequences: Ints) -> list[Floats]:
        """Hidden states (t, h) of each sequence, all of them in one padded pass."""
        shape = len(sequences), max(map(len, sequences))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        [states] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        return [states[row, : len(sequence)] for row, sequence in enumerate(sequences)]


def viewed(directory: Path, families: Mapping[str, Family]) -> Path:
    """The directory as the reference sees it: `directory`, or its files with the view's config."""
    raw = json.loads((directory / "config.json").read_text("utf-8"))
    view = families[raw["model_type"]].view
    config = None if view is None else view(raw)
    if config is None:
        return directory
    other = directory / "view"
    other.mkdir(exist_ok=True)
    for path in directory.glob("*.safetensors"):
        (other / path.name).unlink(missing_ok=True)
        (other / path.name).hardlink_to(path)
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return other


def build(directory: Path, families: Mapping[str, Family]) -> Path:
    """Write the graph as the exporter does: keys checked, shapes first, then with weights."""
    path = directory / "config.json"
    raw = json.loads(path.read_text("utf-8"))
    family = families[raw["model_type"]]
    config = hf.AutoConfig.from_pretrained(viewed(directory, families))
    config_keys.check(raw, family.keys, path)
    for shapes_only in (True, False):
        with (directory / WEIGHTS).open("wb") as weights:
            graph = GraphBuilder(None if shapes_only else weights)
            checkpoint = Checkpoint(directory, family.prefixes, family.ignored, shapes_only)
            built = family.build(config, Layers(graph, checkpoint))
            checkpoint.finish()
    graph.write(built.output, built.hidden_size, directory / GRAPH)
    return directory / GRAPH


def sequences(vocabulary: int, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[Ints]:
    """Random ids of these lengths, none of them below 5."""
    draw = np.random.default_rng(seed)
    return [draw.integers(5, vocabulary, t, np.int64) for t in lengths]


def expected(directory: Path, texts: Sequence[Ints]) -> list[Floats]:
    """What transformers makes of each text, alone, in float32."""
    torch.set_num_threads(1)
    model = hf.AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    with torch.inference_mode():
        return [
            model.eval()(
                input_ids=torch.from_numpy(ids)[None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            )
            .last_hidden_state[0]
            .numpy()
            for ids in texts
        ]


def assert_equal(
    directory: Path, families: Mapping[str, Family], lengths: Sequence[int] = LENGTHS
) -> None:
    """The graph's hidden states are transformers', alone and in one padded pass."""
    graph = Graph(directory, families)
    reference = viewed(directory, families)
    texts = sequences(hf.AutoConfig.from_pretrained(reference).vocab_size, lengths)
    wanted = expected(reference, texts)
    together = graph.run(*texts)
    for ids, beside, want in zip(texts, together, wanted, strict=True):
        tolerance = 2e-6 * max(1.0, float(np.abs(want).max()))
        for found in (graph.run(ids)[0], beside):
            np.testing.assert_allclose(found, want, rtol=0, atol=tolerance)


def assert_same_bits(graph: Graph, vocabulary: int) -> None:
    """A text has the same bits alone and in company; a long one where no row is padded."""
    draw = np.random.default_rng(2)
    for longest in (4, 20, 130, LONGEST_MASKED):
        texts = sequences(vocabulary, [*draw.integers(2, longest, 4), longest], int(longest))
        for ids, beside in zip(texts, graph.run(*texts), strict=True):
            np.testing.assert_array_equal(graph.run(ids)[0], beside)
    for length in (LONGEST_MASKED + 1, 1000):
        texts = sequences(vocabulary, [length] * 3)
        for ids, beside in zip(texts, graph.run(*texts), strict=True):
            np.testing.assert_array_equal(graph.run(ids)[0], beside)


_PEAK = """
import sys, numpy, onnxruntime
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = peak()
ids = numpy.full((1, int(sys.argv[2])), 7, numpy.int64)
session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
print(peak() - loaded)
"""


def peak_memory(graph: Path, tokens: int) -> int:
    """MiB that one pass of `tokens` takes beyond the loaded model, in a process of its own."""
    command = [sys.executable, "-c", _PEAK, str(graph), str(tokens)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
