"""Has a model's graph made, by optimum or a family, and describes the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from embedserve.artifact import FLOORS, GRAPH, Table
from embedserve.errors import Exit, StartupError
from export import steps, weights_file
from export.facts import Facts
from export.families.registry import FAMILIES
from export.steps import Nurseries, StepProcess

# onnxruntime fuses optimum's graphs of these completely. A family's graph would change the
# fingerprint of their artifacts.
_OPTIMUM = frozenset(("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"))

# Above either, a family makes the graph: a protobuf message has at most 2 GiB, and optimum's
# attention holds a (t, t) matrix for each head.
_OPTIMUM_BYTES = 1_900_000_000
_OPTIMUM_TOKENS = 512

_FAMILY_STEP = "export.family_graph"

_INTERESTING = ("Attention", "Gelu", "LayerNormalization", "RotaryEmbedding")


@dataclass(frozen=True, slots=True)
class Graph:
    """What was written: fused operators by name, and the manifest's facts about the graph."""

    fused: Mapping[str, int]
    masked_up_to: int | None
    tables: tuple[Table, ...]
    versions: Mapping[str, str]
    peak_bytes: int


def is_optimums(facts: Facts, precision: str) -> bool:
    """Whether optimum makes the graph. Its fused operators hide products that int8 converts."""
    small = facts.weight_bytes <= _OPTIMUM_BYTES and facts.max_tokens <= _OPTIMUM_TOKENS
    return facts.model_type in _OPTIMUM and small and precision not in FLOORS


def start(
    facts: Facts, precision: str, stage: Path, scratch: Path, nurseries: Nurseries
) -> StepProcess:
    """Start writing stage/model.onnx and weights.bin, in another process.

    In float32; `precision` says what will be made of it. The graph: input_ids, attention_mask
    (b, t) int64 -> last_hidden_state (b, t, h) float32.
    """
    job = {**_job(facts), "out": str(stage)}
    if not is_optimums(facts, precision):
        return nurseries.start(_FAMILY_STEP, job, scratch)
    if not steps.OPTIMUM.is_dir():
        raise StartupError(
            f"{steps.OPTIMUM}: no such folder; it has optimum and what it needs "
            "(requirements/optimum.txt); `make .venv-export/.installed` makes it",
            Exit.CONFIG,
        )
    family = FAMILIES[facts.model_type]
    job |= {"prefixes": list(family.prefixes), "ignored": list(family.ignored)}
    return nurseries.start("export.optimum_graph", job, scratch, steps.OPTIMUM)


def check(facts: Facts, precision: str, scratch: Path, nurseries: Nurseries) -> None:
    """Check the tensors' names and shapes and the positions, as the family's graph would.

    Only for graphs by optimum: a family's own step begins with this. StartupError (65).
    """
    if is_optimums(facts, precision):
        with nurseries.start(_FAMILY_STEP, _job(facts), scratch) as step:
            step.result()


def _job(facts: Facts) -> dict[str, Any]:
    return {
        "directory": str(facts.directory),
        "model_type": facts.model_type,
        "hidden_size": facts.hidden_size,
        "max_tokens": facts.max_tokens,
    }


def finish(step: StepProcess, facts: Facts, stage: Path, precision: str) -> Graph:
    """Wait for the graph and convert it to `precision`. StartupError (65) if it cannot be made."""
    try:
        result = step.result()
    except RuntimeError as error:
        raise StartupError(
            f"{facts.directory}: its graph cannot be made: {error}", Exit.DATAERR
        ) from error
    path = stage / GRAPH
    if precision == "fp16":
        model = weights_file.to_fp16(path)
    else:
        model = onnx.load(path, load_external_data=False)
    return Graph(
        fused=_fused(model.graph),
        masked_up_to=result["masked_up_to"],
        tables=tuple(weights_file.tables(model.graph, precision)),
        versions=result["versions"],
        peak_bytes=result["peak_bytes"],
    )


def _fused(graph: onnx.GraphProto) -> dict[str, int]:
    counts = Counter(node.op_type for node in graph.node)
    return {op: n for op, n in sorted(counts.items()) if op.endswith(_INTERESTING)}
