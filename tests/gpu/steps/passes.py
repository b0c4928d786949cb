"""Milliseconds of a pass by shape, and by how it is run."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from embedserve.arrays.batch import Batch
from embedserve.artifact import GRAPH
from embedserve.model.onnx_backend import options
from embedserve.model.providers import PROVIDERS
from tests.gpu.place import FP16, FP32, Place
from tests.gpu.results import Results
from tests.gpu.steps.engine import Engine, feed, open_engine

# Sequences and tokens: a query, a request of 32, full passes of short and long texts.
SHAPES = ((1, 8), (1, 32), (32, 16), (32, 64), (256, 64), (64, 256), (1024, 16), (512, 256))
REPEATS, WARM_UPS = 20, 3
IDS = (1, 9)  # which tokens they are does not matter, and every vocabulary has these
# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, sdpa_kernel
ATTENTION = {"flash": 1, "efficient": 2, "trt": 4, "math": 16, "trt flash": 32}
Run = Callable[[], object]
Shape = tuple[int, int]


def run(place: Place, results: Results, log: Path) -> None:
    """Each way is tried by itself: what one cannot do is said, and the next is tried."""
    for model in (FP32, FP16):
        results.attempt(f"{model}, as served", timed, place, partial(_served, place, model))
    results.attempt("nodes by provider", _nodes, place)
    ways = {
        "token embeddings to the host": _to_host,
        "inputs and outputs on the device": _on_device,
        "a CUDA graph": _graph,
    }
    for name, way in ways.items():
        results.attempt(name, timed, place, partial(way, place))
    for name, bits in ATTENTION.items():
        of = partial(_on_device, place, sdpa_kernel=str(bits))
        results.attempt(f"attention {name}", timed, place, of)


def timed(place: Place, of: Callable[[Shape], Run]) -> dict[str, float]:
    """Milliseconds, in the median, by shape."""
    found = {}
    for b, t in SHAPES:
        shape = place.count(b), t
        once = of(shape)
        for _ in range(place.count(WARM_UPS)):
            once()
        seconds = []
        for _ in range(place.count(REPEATS)):
            begin = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - begin)
        found[f"{b} x {t}"] = round(1e3 * median(seconds), 3)
    return found


def batch(shape: Shape) -> Batch:
    """Ids that mean nothing, and a mask without padding but for the last sequence."""
    ids = np.random.default_rng(5).integers(*IDS, shape)
    mask = np.ones(shape, np.int64)
    mask[-1, -2:] = 0
    return Batch(ids, mask)


def _served(place: Place, model: str, shape: Shape) -> Run:
    if model not in _engines:
        _engines[model] = open_engine(place, model)
    return partial(_engines[model].backend.embed, batch(shape))


_engines: dict[str, Engine] = {}
_sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}


def session(place: Place, **extra: str) -> onnxruntime.InferenceSession:
    """One a set of options."""
    key = tuple(map(str, extra.items()))
    if key not in _sessions:
        row = PROVIDERS[place.provider]
        given = {**row.options, **extra} if place.provider == "cuda" else {}
        providers = [(row.name, given), *(["CPUExecutionProvider"] * (place.provider == "cuda"))]
        _sessions[key] = onnxruntime.InferenceSession(
            str(place.artifact(FP16) / GRAPH), options(1), providers=providers
        )
    return _sessions[key]


def _to_host(place: Place, shape: Shape) -> Run:
    opened = session(place)
    given = feed(opened, batch(shape))
    return lambda: opened.run(None, given)


def _on_device(place: Place, shape: Shape, **extra: str) -> Run:
    opened = session(place, **extra)
    binding = _bound(opened, place, shape)
    return lambda: (opened.run_with_iobinding(binding), binding.synchronize_outputs())


def _graph(place: Place, shape: Shape) -> Run:
    opened = session(place, enable_cuda_graph="1")
    binding = _bound(opened, place, shape)
    run_options = onnxruntime.RunOptions()
    run_options.add_run_config_entry("gpu_graph_id", f"{shape[0]}{shape[1]:04}")
    return lambda: (
        opened.run_with_iobinding(binding, run_options),
        binding.synchronize_outputs(),
    )


def _bound(
    opened: onnxruntime.InferenceSession, place: Place, shape: Shape
) -> onnxruntime.IOBinding:
    """Inputs and the output in device memory that stays where it is."""
    device = PROVIDERS[place.provider].device or "cpu"
    hidden_size = opened.get_outputs()[0].shape[-1]
    binding = opened.io_binding()
    for name, array in feed(opened, batch(shape)).items():
        binding.bind_ortvalue_input(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        )
    hidden = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        [*shape, hidden_size], np.float32, device, 0
    )
    binding.bind_ortvalue_output(opened.get_outputs()[0].name, hidden)
    return binding


def _nodes(place: Place) -> dict[str, object]:
    """How many operators run where, by the profile of a run."""
    row = PROVIDERS[place.provider]
    with tempfile.TemporaryDirectory() as scratch:
        made = options(1)
        made.enable_profiling, made.profile_file_prefix = True, f"{scratch}/profile"
        given = [(row.name, dict(row.options)), "CPUExecutionProvider"]
        opened = onnxruntime.InferenceSession(
            str(place.artifact(FP16) / GRAPH),
            made,
            providers=given[: 1 + (place.provider == "cuda")],
        )
        opened.run(None, feed(opened, batch((32, 16))))
        events = json.loads(Path(opened.end_profiling()).read_text())
    nodes = [e["args"] for e in events if e.get("cat") == "Node" and "provider" in e["args"]]
    return dict(Counter(f"{node['provider']} {node['op_name']}" for node in nodes))
