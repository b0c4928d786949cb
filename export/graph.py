"""Files -> model.onnx, weights.bin: optimum's export, onnxruntime's fusions, always the same."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedserve.artifact import GRAPH, WEIGHTS, Table
from embedserve.errors import Exit, StartupError
from export.facts import Facts

if TYPE_CHECKING:
    import onnx

# The first opset with LayerNormalization as one operator; onnxruntime runs it from 1.12 on, and
# the fusions below match the same patterns in it as in older ones.
OPSET = 17
OUTPUT = "last_hidden_state"

# Bytes: smaller tensors (shapes, biases) stay in the graph.
_LARGE_TENSOR = 4096

# Operators that read some rows of a tensor and leave the rest alone.
_LOOKUPS = {"Gather", "EmbedLayerNormalization"}

# Constant folding and the like, which hold for every provider. onnxruntime's own fusions (level
# 2) find nothing more after those below, and would write a graph for the CPU only.
_OPTIMIZATION_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """What was written: fused operators by name, and the manifest's facts about the graph."""

    fused: Mapping[str, int]
    masked_up_to: int | None = None
    tables: tuple[Table, ...] = ()


def export(facts: Facts, stage: Path, precision: str = "fp32") -> Graph:
    """Write the graph and its weights: input_ids, attention_mask (b, t) int64 -> (b, t, h) float32.

    The same files give the same bytes. StartupError (65) when the model cannot be exported.
    """
    written = _FAMILIES.get(facts.model_type, _optimum)(facts, stage / GRAPH)
    return replace(written, tables=_split(stage / GRAPH, precision))


def _split(path: Path, precision: str) -> tuple[Table, ...]:
    """Convert to `precision` and move the large tensors to the file beside the graph.

    Written here: onnx's own writer opens the file in C++, and a full disk is then "rejected path".
    Returns the tables of embeddings in that file, which sessions can share.
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(path)
    if precision == "fp16":
        with quiet():
            from onnxruntime.transformers.float16 import convert_float_to_float16

            # The output stays float32: pooling and what follows it are exact.
            model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    with (path.parent / WEIGHTS).open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= _LARGE_TENSOR:
                set_external_data(tensor, WEIGHTS, file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    onnx.save(model, path)
    return tuple(_tables(model.graph))


def _tables(graph: onnx.GraphProto) -> Iterator[Table]:
    """The tensors that nodes look up by row and nothing else reads."""
    readers: dict[str, set[str]] = {}
    for node in _nodes(graph):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and readers.get(tensor.name, {""}) <= _LOOKUPS:
            yield Table(tensor.name, int(place.get("offset", 0)), tuple(tensor.dims))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def register(model_type: str) -> None:
    """Make a family that transformers does not know loadable; nothing for the others."""
    if model_type == "nomic_bert":
        from export.families import nomic_bert

        nomic_bert.register()


def _nomic_bert(facts: Facts, out: Path) -> Graph:
    from export.families.nomic_bert_graph import LONGEST_MASKED, export_onnx

    try:
        export_onnx(facts.directory, out)
    except ValueError as error:
        raise StartupError(f"{facts.directory}: {error}", Exit.DATAERR) from error
    import onnx

    return Graph(_fused(onnx.load(out).graph), masked_up_to=LONGEST_MASKED)


def _optimum(facts: Facts, out: Path) -> Graph:
    import onnx

    heads = _trace(facts, out)
    model = _fuse(out, heads, facts.hidden_size)
    _strip(model)
    onnx.save(model, out)
    return Graph(_fused(model.graph))


def _trace(facts: Facts, out: Path) -> int:
    """Write the unfused graph; return the number of attention heads."""
    with quiet():
        import torch
        from optimum.exporters.onnx.convert import export as export_onnx
        from optimum.exporters.tasks import TasksManager
        from transformers import AutoModel

        with _blaming_the_model(facts):
            model = AutoModel.from_pretrained(
                facts.directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            ).eval()
            _check_positions(model, facts)
            config = TasksManager.get_exporter_config_constructor(
                "onnx", model, task="feature-extraction", library_name="transformers"
            )(model.config)
        with _blaming_the_model(facts, but_the_disk=True):
            export_onnx(model, config, out, opset=OPSET)
    return int(config._normalized_config.num_attention_heads)


@contextlib.contextmanager
def _blaming_the_model(facts: Facts, but_the_disk: bool = False) -> Iterator[None]:
    """Say that a model cannot be exported, whatever three libraries raise.

    `but_the_disk`: nothing is read any more, so an error of the system is one of writing.
    """
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        if but_the_disk and isinstance(error, OSError) and error.errno is not None:
            raise
        raise StartupError(
            f"{facts.directory / 'config.json'}: model_type = {facts.model_type!r}: "
            f"transformers or optimum cannot export it: {_first_line(error)}",
            Exit.DATAERR,
        ) from error


def _check_positions(model: Any, facts: Facts) -> None:
    """Refuse a limit past the learned positions: a longer text would fail, or read others'.

    The RoBERTa family counts positions from padding_idx + 1, so two of its 514 are never used.
    """
    from torch import nn

    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if not isinstance(table, nn.Embedding):
            continue
        first = getattr(module, "padding_idx", None)
        room = table.num_embeddings - (first + 1 if isinstance(first, int) else 0)
        if facts.max_tokens > room:
            raise StartupError(
                f"{facts.directory}: the limit is {facts.max_tokens} tokens, and the model has "
                f"positions for {room}; set max_tokens = {room} in its table of models.toml",
                Exit.DATAERR,
            )


def _fuse(path: Path, heads: int, hidden_size: int) -> onnx.ModelProto:
    """Fuse attention, layer norms with their residuals, GELU with its bias, and embeddings.

    onnxruntime's patterns for "bert" are those of every encoder family here.
    """
    with quiet():
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        try:
            optimized = optimize_model(
                str(path),
                "bert",
                num_heads=heads,
                hidden_size=hidden_size,
                optimization_options=FusionOptions("bert"),
                opt_level=_OPTIMIZATION_LEVEL,
                only_onnxruntime=False,
            )
        except Exception as error:  # a RuntimeError, or one of several of its own
            refusal = _unwritten(error, path.parent)
            if refusal is None:
                raise
            raise refusal from error
        optimized.topological_sort(is_deterministic=True)
    model: onnx.ModelProto = optimized.model
    return model


# All that onnxruntime says when a file that it writes on the way cannot be opened, closed; written.
_NOT_WRITTEN = re.compile(r"SystemError : (\d+)|Protobuf serialization failed")


def _unwritten(error: Exception, directory: Path) -> StartupError | None:
    found = _NOT_WRITTEN.search(str(error))
    if found is None:
        return None
    reason = os.strerror(int(found[1])) if found[1] else found[0]
    return StartupError(
        f"{directory}: onnxruntime cannot write its graph: {reason}; nothing was published",
        Exit.CANTCREAT,
    )


def _strip(model: onnx.ModelProto) -> None:
    """Leave nothing that does not compute: source paths, versions, types of intermediates."""
    model.doc_string = model.producer_version = ""
    model.producer_name = "embedserve"
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "encoder", ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    _rename(graph)
    graph.initializer.sort(key=lambda tensor: tensor.name)
    used = {node.domain for node in graph.node} | {""}
    opsets = sorted((o for o in model.opset_import if o.domain in used), key=lambda o: o.domain)
    del model.opset_import[1:]
    for i, opset in enumerate([type(o).FromString(o.SerializeToString()) for o in opsets]):
        if i:
            model.opset_import.append(opset)
        else:
            model.opset_import[0].CopyFrom(opset)


def _rename(graph: onnx.GraphProto) -> None:
    for i, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{i}", ""
        del node.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""


_INTERESTING = ("Attention", "Gelu", "LayerNormalization", "RotaryEmbedding")


def _fused(graph: onnx.GraphProto) -> dict[str, int]:
    counts = Counter(node.op_type for node in graph.node)
    return {op: n for op, n in sorted(counts.items()) if op.endswith(_INTERESTING)}


_FAMILIES: Mapping[str, Callable[[Facts, Path], Graph]] = {"nomic_bert": _nomic_bert}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries say about their own future off the operator's screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(previous)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
