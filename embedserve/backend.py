"""OnnxBackend: Batch -> (b, dim) float32; session options; the PROVIDERS table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by onnxruntime at import: without it, versions from 1.29 send telemetry on Linux.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

from embedserve import artifact, finishing
from embedserve.artifact import GRAPH, Manifest, Step
from embedserve.batching import Batch
from embedserve.errors import Exit, StartupError
from embedserve.pooling import Floats, Ints, pool


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider: onnxruntime's name, its options, and how to get it."""

    name: str
    options: Mapping[str, str]
    advice: str


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", {}, "it is in every build of onnxruntime"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        # Exact float32 (no TF32), and memory by what is asked for, not by powers of two.
        {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
        "install onnxruntime-gpu in the place of onnxruntime (README, CUDA), and check that the "
        "driver and CUDA libraries are found",
    ),
}

# What a graph may ask for, and how it is made from a batch.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxBackend:
    """One model's session, pooling and finishing. `embed` may run in several threads at once."""

    def __init__(self, directory: Path, manifest: Manifest, provider: str = "cpu") -> None:
        self.manifest = manifest
        self.provider = provider
        self._session = _open(directory / GRAPH, PROVIDERS[provider])
        self._inputs = [i.name for i in self._session.get_inputs()]
        unknown = sorted(set(self._inputs) - set(INPUTS))
        if unknown or "input_ids" not in self._inputs:
            raise StartupError(
                f"{directory / GRAPH}: inputs {', '.join(self._inputs)}; accepted: "
                f"{', '.join(INPUTS)}",
                Exit.DATAERR,
            )
        self._steps = [_load(step, directory) for step in manifest.finishing]

    def embed(self, batch: Batch) -> Floats:
        """Run one pass: (b, t) -> (b, dim) float32, finished and not yet checked."""
        hidden = self._hidden(batch)
        rows = pool(self.manifest.pooling, hidden, batch.attention_mask)
        for step in self._steps:
            rows = step(rows)
        return rows

    def _hidden(self, batch: Batch) -> Floats:
        feed: dict[str, Ints] = {}
        for name in self._inputs:
            if name == "input_ids":
                feed[name] = batch.input_ids
            elif name == "attention_mask":
                feed[name] = batch.attention_mask
            else:
                feed[name] = np.zeros_like(batch.input_ids)
        hidden: Floats = self._session.run(None, feed)[0]
        return hidden.astype(np.float32, copy=False)


class _Finish:
    """A finishing step with its arrays."""

    def __init__(self, step: Step, weight: Floats | None, bias: Floats | None) -> None:
        self.step, self.weight, self.bias = step, weight, bias

    def __call__(self, rows: Floats) -> Floats:
        if self.step.kind == "normalize":
            return finishing.normalize(rows)
        if self.step.kind == "layer_norm":
            return finishing.layer_norm(rows, self.step.eps, self.weight, self.bias)
        assert self.weight is not None and self.step.activation is not None
        return finishing.dense(rows, self.weight, self.bias, self.step.activation)


def _load(step: Step, directory: Path) -> _Finish:
    names = (step.weight, step.bias)
    weight, bias = (None if n is None else artifact.read_array(directory, n) for n in names)
    if step.kind == "dense" and (weight is None or step.activation is None):
        raise StartupError(f"{directory}: a dense step needs weight and activation", Exit.DATAERR)
    return _Finish(step, weight, bias)


def _open(path: Path, provider: Provider) -> onnxruntime.InferenceSession:
    available = onnxruntime.get_available_providers()
    if provider.name not in available:
        raise StartupError(
            f"provider {provider.name} is not in this build of onnxruntime (it has "
            f"{', '.join(available)}); {provider.advice}",
            Exit.UNAVAILABLE,
        )
    # The CPU provider stands behind every other for the few shape operators.
    providers: list[Any] = [(provider.name, dict(provider.options))]
    if provider.name != PROVIDERS["cpu"].name:
        providers.append(PROVIDERS["cpu"].name)
    try:
        session = onnxruntime.InferenceSession(str(path), _options(), providers=providers)
    except Exception as error:  # the library raises many types without a common root
        raise StartupError(f"{path}: onnxruntime cannot load it: {error}") from error
    active = session.get_providers()
    # Asked for CUDA, onnxruntime silently gives CPU when the driver or a library is missing.
    if active[0] != provider.name:
        raise StartupError(
            f"provider {provider.name} was asked for and {active[0]} is active; {provider.advice}",
            Exit.UNAVAILABLE,
        )
    return session


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # One thread a run: lanes give the parallelism (+28 % with 32 clients, against two threads a
    # run). Explicit, because 0 means all cores of the host, whatever this process may use.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Spinning burns 2.8 times the processor time at 50 requests/s for no throughput.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What a run raises is caught and logged once, by the worker.
    options.log_severity_level = 4
    return options
