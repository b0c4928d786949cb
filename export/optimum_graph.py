"""Files -> model.onnx, weights.bin by optimum's export and onnxruntime's fusions.

Runs in a process of its own (export.steps) with optimum's versions of transformers and tokenizers,
which are older than the reference's.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedserve.artifact import GRAPH
from embedserve.errors import Exit, StartupError
from export import weights_file
from export.families.checkpoint import known_name
from export.libraries import quiet, versions
from export.steps import Json

if TYPE_CHECKING:
    import onnx

# The first opset with LayerNormalization as one operator; onnxruntime runs it from 1.12 on, and
# the fusions below match the same patterns in it as in older ones.
OPSET = 17

LIBRARIES = ("optimum", "optimum-onnx", "transformers", "torch", "onnx", "onnxruntime")

# Constant folding and the like, which hold for every provider. onnxruntime's own fusions (level
# 2) find nothing more after those below, and would write a graph for the CPU only.
_OPTIMIZATION_LEVEL = 1

# Tensors that no hidden state depends on; transformers makes them if the files have none.
_POOLER = r"pooler\..*"


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import transformers  # noqa: F401


def run(job: Json) -> Json:
    """Write out/model.onnx and weights.bin; return the versions of the libraries.

    The same files give the same bytes. StartupError (65) when the model cannot be exported.
    """
    directory, out = Path(job["directory"]), Path(job["out"]) / GRAPH
    heads = _trace(directory, out, job)
    model = _fuse(out, heads, job["hidden_size"])
    _strip(model)
    weights_file.split(model, out)
    return {"versions": versions(LIBRARIES), "masked_up_to": None}


def _trace(directory: Path, out: Path, job: Json) -> int:
    """Write the unfused graph; return the number of attention heads."""
    with quiet():
        import torch
        from optimum.exporters.onnx.convert import export as export_onnx
        from optimum.exporters.tasks import TasksManager
        from transformers import AutoModel

        with _blaming_the_model(directory):
            model, loading = AutoModel.from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            model.eval()
            _check_tensors(directory, loading, job["prefixes"], job["ignored"])
            config = TasksManager.get_exporter_config_constructor(
                "onnx", model, task="feature-extraction", library_name="transformers"
            )(model.config)
        with _blaming_the_model(directory, but_the_disk=True):
            export_onnx(model, config, out, opset=OPSET)
    return int(config._normalized_config.num_attention_heads)


@contextlib.contextmanager
def _blaming_the_model(directory: Path, but_the_disk: bool = False) -> Iterator[None]:
    """Turn whatever the three libraries raise into one line: the model cannot be exported (65).

    `but_the_disk`: the block only writes, so an OSError is about the disk and passes.
    """
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        if but_the_disk and isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartupError(
            f"{directory / 'config.json'}: transformers or optimum cannot export it: {reason}",
            Exit.DATAERR,
        ) from error


def _check_tensors(
    directory: Path, loading: Any, prefixes: Sequence[str], ignored: Sequence[str]
) -> None:
    """Refuse a checkpoint that lacks a tensor (it would be random) or has one too many."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern in (*ignored, _POOLER)))
    for what, key in (("are missing", "missing_keys"), ("have no place", "unexpected_keys")):
        names = {known_name(name, prefixes) for name in loading[key]}
        odd = sorted(name for name in names if not known.fullmatch(name))
        if odd:
            raise StartupError(
                f"{directory / 'model.safetensors'}: tensors {what}: {', '.join(odd[:5])}",
                Exit.DATAERR,
            )
    if loading["mismatched_keys"]:
        raise StartupError(
            f"{directory / 'model.safetensors'}: tensors of another shape than config.json says: "
            f"{loading['mismatched_keys'][0]}",
            Exit.DATAERR,
        )


def _fuse(path: Path, heads: int, hidden_size: int) -> onnx.ModelProto:
    """Fuse attention, layer norms with their residuals, GELU with its bias, and embeddings.

    onnxruntime's patterns for "bert" fit every encoder family here.
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


# What onnxruntime says when it cannot open, close or write an intermediate file.
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
    """Remove all that does not compute: source paths, versions, types of intermediates."""
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
