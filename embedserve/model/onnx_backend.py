"""The onnxruntime sessions of a model: Batch -> (b, dim) float32; their options: OnnxBackend."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from embedserve import artifact
from embedserve.arrays import finishing
from embedserve.arrays.batch import Batch
from embedserve.arrays.pooling import pool
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH, POOLING_GRAPH, FinishingStep, Manifest
from embedserve.errors import DeviceLostError, Exit, StartupError
from embedserve.model.providers import PROVIDERS, Provider
from embedserve.model.stop import Stop

VERSION: str = onnxruntime.__version__
# Its exceptions are caught and logged once, by embedserve; without this it would print them as
# well.
onnxruntime.set_default_logger_severity(4)
SPIN_MICROSECONDS = "600"

# How onnxruntime says that an allocation failed, on the CPU and on CUDA.
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|failed to allocate|out of memory|resource allocation failed", re.IGNORECASE
)

# What CUDA's libraries say of a failure, amid the file names of onnxruntime's own source.
_FAILURE = re.compile(r"\w+ failure \d+: [^;]+")

# What a graph may ask for, and how it is made from a batch.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxBackend:
    """One model's sessions, pooling and finishing. `embed` may run in several threads at once.

    `threads` is what one run may use when it is alone; a run beside others uses one.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, provider: str = "cpu", threads: int = 1
    ) -> None:
        self.manifest = manifest
        self.provider = provider
        # Kept alive: sessions use this memory and hold no reference to it.
        self._tables = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(table)
            for name, table in artifact.map_tables(directory, manifest).items()
        }
        opened = functools.partial(_open, directory / GRAPH, PROVIDERS[provider], self._tables)
        with ThreadPoolExecutor(1) as beside:
            # It shares the tables: what it adds is its own packed matrices (41 MB for
            # all-MiniLM-L6-v2), for two thirds of the latency of a lone text.
            has_wide = threads > 1 and provider == "cpu"
            wide = beside.submit(opened, threads) if has_wide else None
            self._session = opened(1)
            self._wide = wide.result() if wide else None
        self._device = PROVIDERS[provider].device
        self._pooling = self._open_pooling(directory) if self._device else None
        self._inputs = [i.name for i in self._session.get_inputs()]
        unknown = sorted(set(self._inputs) - set(INPUTS))
        if unknown or "input_ids" not in self._inputs:
            raise StartupError(
                f"{directory / GRAPH}: inputs {', '.join(self._inputs)}; accepted: "
                f"{', '.join(INPUTS)}",
                Exit.DATAERR,
            )
        self._steps = [_load(step, directory) for step in manifest.finishing]
        _check_shapes(self._session, self._steps, manifest, directory)

    def embed(self, batch: Batch, alone: bool = False, stop: Stop | None = None) -> Floats:
        """Run one pass: (b, t) -> (b, dim) float32, finished and not yet checked.

        `alone`: no other pass runs. The bits are the same either way. `stop` ends it from another
        thread: then it raises. MemoryError when the device or the host has none left;
        DeviceLostError when a device fails at the smallest pass, too.
        """
        session = (self._wide if alone else None) or self._session
        options = onnxruntime.RunOptions()
        if stop is not None:
            stop.bind(lambda: setattr(options, "terminate", True))
        try:
            rows = self._pooled(session, batch, options)
        except Exception as error:  # the library raises many types without a common root
            if _OUT_OF_MEMORY.search(str(error)):
                raise MemoryError(_said(error)) from error
            was_asked = stop is not None and stop.asked is not None
            if self._device and not was_asked and not self._works():
                raise DeviceLostError(_said(error)) from error
            raise
        for step in self._steps:
            rows = step(rows)
        return rows

    def _works(self) -> bool:
        """Whether the device computes the smallest pass there is, or only lacks the memory."""
        ids = np.full((1, 1), self.manifest.pad_token_id, np.int64)
        try:
            self._pooled(self._session, Batch(ids, np.ones_like(ids)), onnxruntime.RunOptions())
        except Exception as error:  # as above
            return bool(_OUT_OF_MEMORY.search(str(error)))
        return True

    def _pooled(
        self,
        session: onnxruntime.InferenceSession,
        batch: Batch,
        options: onnxruntime.RunOptions,
    ) -> Floats:
        feed = self._feed(batch)
        if self._pooling is not None:
            return self._pooled_on_device(session, feed, batch.attention_mask, options)
        hidden: Floats = session.run(None, feed, options)[0]
        return pool(self.manifest.pooling, hidden, batch.attention_mask)

    def _feed(self, batch: Batch) -> dict[str, Ints]:
        feed: dict[str, Ints] = {}
        for name in self._inputs:
            if name == "input_ids":
                feed[name] = batch.input_ids
            elif name == "attention_mask":
                feed[name] = batch.attention_mask
            else:
                feed[name] = np.zeros_like(batch.input_ids)
        return feed

    def _pooled_on_device(
        self,
        session: onnxruntime.InferenceSession,
        feed: dict[str, Ints],
        attention_mask: Ints,
        options: onnxruntime.RunOptions,
    ) -> Floats:
        """Token embeddings stay where they are computed: only rows are copied back."""
        run = session.io_binding()
        for name, array in feed.items():
            run.bind_cpu_input(name, array)
        run.bind_output(session.get_outputs()[0].name, self._device)
        session.run_with_iobinding(run, options)
        assert self._pooling is not None
        rows = self._pooling.io_binding()
        rows.bind_ortvalue_input("token_embeddings", run.get_outputs()[0])
        rows.bind_cpu_input("attention_mask", attention_mask)
        rows.bind_output("rows", "cpu")
        self._pooling.run_with_iobinding(rows, options)
        pooled: Floats = rows.copy_outputs_to_cpu()[0]
        return pooled

    def _open_pooling(self, directory: Path) -> onnxruntime.InferenceSession:
        if POOLING_GRAPH not in self.manifest.files:
            raise StartupError(
                f"{directory / POOLING_GRAPH}: no such file, and {self.provider} needs it; export "
                "the model again",
                Exit.DATAERR,
            )
        return _open(directory / POOLING_GRAPH, PROVIDERS[self.provider], {}, 1)


class _Finish:
    """A finishing step with its arrays."""

    def __init__(self, step: FinishingStep, weight: Floats | None, bias: Floats | None) -> None:
        self.step, self.weight, self.bias = step, weight, bias

    def __call__(self, rows: Floats) -> Floats:
        if self.step.kind == "normalize":
            return finishing.normalize(rows)
        if self.step.kind == "layer_norm":
            return finishing.layer_norm(rows, self.step.eps, self.weight, self.bias)
        assert self.weight is not None and self.step.activation is not None
        return finishing.dense(rows, self.weight, self.bias, self.step.activation)


def _check_shapes(
    session: onnxruntime.InferenceSession,
    steps: Sequence[_Finish],
    manifest: Manifest,
    directory: Path,
) -> None:
    """Hold the manifest's sizes against the graph's output and the arrays of the steps."""
    found = session.get_outputs()[0].shape[-1:]  # a name where the graph leaves it open
    if found and isinstance(found[0], int) and found[0] != manifest.hidden_size:
        raise StartupError(
            f"{directory / GRAPH}: gives {found[0]} components, the manifest's hidden_size is "
            f"{manifest.hidden_size}"
        )
    size = manifest.hidden_size * len(manifest.pooling)
    for step in steps:
        expected: list[tuple[int, ...]] = [(size,), (size,)]
        if step.step.kind == "dense":
            assert step.weight is not None
            size = step.weight.shape[0] if step.weight.ndim else 0
            expected = [(size, expected[0][0]), (size,)]
        for array, shape in zip((step.weight, step.bias), expected, strict=True):
            if array is not None and array.shape != shape:
                raise StartupError(
                    f"{directory}: {step.step.kind} has an array of shape {array.shape}; "
                    f"expected {shape}"
                )
    if size != manifest.dimension:
        raise StartupError(
            f"{directory}: gives vectors of {size}, the manifest's dimension is "
            f"{manifest.dimension}"
        )


def _load(step: FinishingStep, directory: Path) -> _Finish:
    names = (step.weight, step.bias)
    weight, bias = (None if n is None else artifact.read_array(directory, n) for n in names)
    if step.kind == "dense" and (weight is None or step.activation is None):
        raise StartupError(f"{directory}: a dense step needs weight and activation", Exit.DATAERR)
    return _Finish(step, weight, bias)


def available() -> tuple[str, ...]:
    """Name the providers of this build of onnxruntime; drivers may be missing all the same."""
    return tuple(onnxruntime.get_available_providers())


def check_available(provider: Provider) -> None:
    """StartupError when this build of onnxruntime, or this machine, does not have the provider."""
    if provider.name not in available():
        raise StartupError(
            f"provider {provider.name} is not in this build of onnxruntime (it has "
            f"{', '.join(available())}); {provider.advice}",
            Exit.UNAVAILABLE,
        )
    provider.check()


def _open(
    path: Path, provider: Provider, tables: Mapping[str, onnxruntime.OrtValue], threads: int
) -> onnxruntime.InferenceSession:
    check_available(provider)
    # Every other provider also gets the CPU provider, for the few shape operators.
    providers: list[Any] = [(provider.name, dict(provider.options))]
    if provider.name != PROVIDERS["cpu"].name:
        providers.append(PROVIDERS["cpu"].name)
    made = options(threads)
    try:
        for name, table in tables.items():
            made.add_initializer(name, table)
        session = onnxruntime.InferenceSession(
            str(path),
            made,
            providers=providers,
            disabled_optimizers=list(provider.disabled_optimizers),
            # Else it goes on with the CPU where a GPU fails, at load and in the middle of a run.
            enable_fallback=0,
        )
    except Exception as error:  # the library raises many types without a common root
        said = _said(error)
        if _OUT_OF_MEMORY.search(str(error)):
            raise StartupError(
                f"{path}: there is not enough memory to load it: {said}", Exit.UNAVAILABLE
            ) from error
        raise StartupError(f"{path}: onnxruntime cannot load it: {said}") from error
    active = session.get_providers()
    # Asked for CUDA, onnxruntime silently gives CPU when the driver or a library is missing.
    if active[0] != provider.name:
        raise StartupError(
            f"provider {provider.name} was requested, but {active[0]} is active; {provider.advice}",
            Exit.UNAVAILABLE,
        )
    return session


def _said(error: Exception) -> str:
    """The library's reason in one line."""
    failure = _FAILURE.search(str(error))
    return failure[0].strip() if failure else " ".join(str(error).split())


def options(threads: int) -> onnxruntime.SessionOptions:
    """Build the options of every session; each choice was measured (all-MiniLM-L6-v2, two cores).

    Left at the library's defaults: prepacking (0.88 of the rate without it) and all optimizations
    (the artifact's graph is fused already: within 1 % of none).
    """
    made = onnxruntime.SessionOptions()
    # One thread a run where several run: lanes give the parallelism (+28 % with 32 clients,
    # against two threads a run). Explicit, because 0 means all cores of the host, whatever this
    # process may use.
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    # A short text alone on two cores, p50: 2.5 ms without spinning, 1.7 with it, for a bounded time
    # after each operator: 600 us last from one request of a client to the next. Without a bound it
    # burns 2.8 times the processor time at 50 requests/s.
    made.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads > 1)))
    made.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    # The arena keeps its peak for ever, and patterns grow with each new shape. Without both,
    # mixed texts on two lanes run at 1.03 of the rate, and a long text's memory goes back.
    made.enable_cpu_mem_arena = False
    made.enable_mem_pattern = False
    # Without VNNI the kernel for unsigned by signed int8 saturates: 0.89 instead of 0.96 of the
    # nearest passages are found. This takes an exact one there.
    made.add_session_config_entry("session.x64quantprecision", "1")
    # What a run raises is caught and logged once, by the scheduler.
    made.log_severity_level = 4
    return made
