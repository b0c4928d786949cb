"""Embeds chunks on a Ray cluster: actors on its nodes make the same parts from the same chunks.

One actor on this node reads chunks in order. Actors that hold the model turn them into parts, which
this process writes. If a worker or node is killed, Ray retries its chunks. What is missing when Ray
gives up goes into another round, until a round brings nothing; then each chunk is tried alone. If
some still fail, the job ends with an error once everything else is done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import signal
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedserve import __version__
from embedserve.bulk.chunks import Chunk, Cut, Selection
from embedserve.bulk.inputs import open_input
from embedserve.bulk.maker import Maker
from embedserve.bulk.parts import Part
from embedserve.bulk.pipeline import How, Pipeline
from embedserve.bulk.shipping import SHIPPING, Shipped, load
from embedserve.config.models_toml import ModelSpec
from embedserve.config.settings import Settings
from embedserve.errors import Exit, StartupError
from embedserve.model import providers
from embedserve.model.onnx_backend import VERSION
from embedserve.system import process

# Chunks per round: few enough that Ray's bookkeeping stays small, and enough that starting the
# actors costs little beside the work.
ROUND = 5000
# Chunks that an actor has, and works on: while lanes run one, the next is tokenized; others arrive.
IN_HAND, AT_WORK = 4, 2
# How often Ray retries a chunk whose worker died; without a limit it would never end.
RETRIES = 3
# When a round brings nothing: up to this many chunks, one bad chunk may have killed all workers, so
# each is tried alone. With more, the cluster itself does not work.
ALONE = 64
REACH_SECONDS = 10.0

# Ray Data's rows: first a cut's fields, then one column of objects: a chunk, a part, or the error
# in its place.
Row = Mapping[str, Any]
_COLUMN = "content"


@dataclass(frozen=True, slots=True)
class InputFile:
    """The input, as its reader opens it on the node where the job was started."""

    path: Path
    selection: Selection
    chunk_rows: int


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """What a node must know to make parts."""

    spec: ModelSpec
    fingerprint: str
    how: How
    maker: Maker
    settings: Settings


def versions() -> tuple[str, ...]:
    """The versions that must be the same on every node, so that vectors are the same."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"embedserve {__version__}", f"onnxruntime {VERSION}", f"Python {python}"


class Read:
    """Reads chunks of the input, in the order in which they are asked for."""

    def __init__(self, source: InputFile) -> None:
        self._source = source
        self._reader = open_input(source.path, source.selection, source.chunk_rows)

    def __call__(self, batch: Row) -> Row:
        places = zip(*(batch[name].tolist() for name in Cut._fields), strict=True)
        return _packed(self._read(Cut(*place)) for place in places)

    def _read(self, cut: Cut) -> Chunk | StartupError:
        try:
            return self._reader.read(cut)
        except StartupError as error:
            return error
        except OSError as error:
            return StartupError(f"{self._source.path}: {error.strerror}", Exit.NOINPUT)


class Embed:
    """Holds the model. Returns an error in place of a part: an actor that dies cannot say why."""

    def __init__(
        self, task: EmbedTask, shipped: Shipped, cores: int, wanted: tuple[str, ...]
    ) -> None:
        process.prepare()
        self._maker = task.maker
        self._refused: StartupError | None = None
        lanes = providers.lanes(task.settings, cores)
        tokens = providers.tokens_per_pass(task.settings)
        try:
            _check_versions(wanted)
            model = load(shipped, task.spec, task.fingerprint, task.settings.provider, cores)
            self._pipeline = Pipeline(model, task.how, lanes, tokens)
        except StartupError as error:
            self._refused = StartupError(f"on {platform.node()}: {error}", error.status)

    def __call__(self, batch: Row) -> Row:
        return _packed(self._part(chunk) for chunk in _unpacked(batch))

    def _part(self, chunk: Chunk | StartupError) -> Part | StartupError:
        if isinstance(chunk, StartupError) or self._refused is not None:
            return self._refused or chunk  # type: ignore[return-value]  # one of them is an error
        try:
            embedded = self._pipeline.submit(chunk.texts).future.result()
            return self._maker.part(chunk, embedded)
        except Exception as error:  # whatever it is, it must end the job
            return StartupError(f"on {platform.node()}: {error!r}", Exit.SOFTWARE)


class Cluster:
    """Embeds chunks on the nodes of a cluster; `parts` gives them in any order."""

    def __init__(
        self, source: InputFile, task: EmbedTask, shipped: Shipped, cores: int, actors: int
    ) -> None:
        self._source = source
        self._embed = (task, shipped, cores, versions())
        self._gpus = 1 if task.settings.provider == "cuda" else None
        self._cores, self._actors = cores, actors
        self.texts = self.tokens = 0
        self.place = 0.0  # the progress of open chunks is not known
        self._reason = ""  # why the last round ended early

    def parts(self, cuts: Iterable[Cut]) -> Generator[Part, None, None]:
        """Each chunk's part, once. StartupError (69) at the end for parts that no worker made."""
        rest, given_up = iter(cuts), list[Cut]()
        while missing := {cut.number: cut for cut in islice(rest, ROUND)}:
            most, before = len(missing), math.inf
            while 0 < len(missing) < before:
                before = len(missing)
                yield from self._some(list(missing.values()), missing)
            if len(missing) == most > ALONE:  # the cluster does no work at all
                given_up += missing.values()
                break
            for cut in list(missing.values()):  # one of them may kill its worker
                yield from self._some([cut], missing)
            given_up += missing.values()
        if given_up:
            first = given_up[0]
            raise StartupError(
                f"workers failed on {len(given_up)} chunks, the first of them lines "
                f"{first.line} to {first.next_line - 1}{self._reason}",
                Exit.UNAVAILABLE,
            )

    def close(self) -> None:
        """Leave the cluster. Actors that are still at work end."""
        import ray

        ray.shutdown()

    def _some(self, cuts: list[Cut], missing: dict[int, Cut]) -> Iterator[Part]:
        """Yield the parts of one round, and remove their chunks from `missing`."""
        import ray

        try:
            with contextlib.closing(self._round(cuts)) as parts:
                for part in parts:
                    if missing.pop(part.cut.number, None):
                        self.texts += part.cut.rows - len(part.bad)
                        self.tokens += part.tokens
                        yield part
        except ray.exceptions.RayError as error:
            self._reason = f": {' '.join(str(error).split())}"

    def _round(self, cuts: list[Cut]) -> Generator[Part, None, None]:
        """One run of Ray Data over some chunks; a block is a chunk."""
        import ray

        items = [cut._asdict() for cut in cuts]
        parts = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                Read,
                fn_constructor_args=[self._source],
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=0,
                max_task_retries=RETRIES,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            )
            .map_batches(
                Embed,
                fn_constructor_args=self._embed,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    initial_size=self._actors,
                    max_tasks_in_flight_per_actor=IN_HAND,
                    max_concurrent_calls_per_actor=AT_WORK,
                    enable_true_multi_threading=True,
                ),
                num_cpus=self._cores,
                num_gpus=self._gpus,
                max_task_retries=RETRIES,
            )
        )
        # Closed here, not by the garbage collector: Ray must be idle before we leave it.
        with contextlib.closing(iter(parts.iter_batches(batch_size=None))) as batches:
            for batch in batches:
                for found in _unpacked(batch):
                    if isinstance(found, StartupError):
                        raise found
                    yield found


def open_cluster(
    address: str, artifacts_by: str, directory: Path, source: InputFile, task: EmbedTask
) -> Cluster:
    """Join a cluster and give it the artifact. StartupError if no cluster answers."""
    ray = _import_ray()
    _join(ray, address, {"working_dir": str(directory)} if artifacts_by == "working-dir" else {})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a chunk that Ray gives up does not end the round
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = task.settings.lanes or min((count for count in cpus if count), default=1)
    actors = sum(count // cores for count in cpus)
    if not actors:
        raise StartupError(f"--ray {address}: no node has {cores} cores", Exit.UNAVAILABLE)
    return Cluster(source, task, SHIPPING[artifacts_by](directory, ray), cores, actors)


def _import_ray() -> Any:
    # What Ray's core logs about its own objects means nothing to the user.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StartupError(
            f"--ray needs Ray ({error}): pip install 'embedserve[ray]'", Exit.UNAVAILABLE
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _join(ray: Any, address: str, environment: Mapping[str, str]) -> None:
    if "://" in address:
        raise StartupError(
            f"--ray {address}: run the command on a node of the cluster (ray job submit does), and "
            "name HOST:PORT or auto",
            Exit.USAGE,
        )
    _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env=dict(environment),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StartupError(f"--ray {address}: {error}", Exit.UNAVAILABLE) from error
    signal.signal(signal.SIGTERM, before)  # ray.init has installed its own


def _check_reachable(address: str) -> None:
    """StartupError if nothing listens there: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:  # auto, or the name of a cluster: Ray itself fails at once if there is none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StartupError(f"--ray {address}: {error}", Exit.UNAVAILABLE) from error


def _check_versions(wanted: tuple[str, ...]) -> None:
    for found, expected in zip(versions(), wanted, strict=True):
        if found != expected:
            raise StartupError(f"has {found}, the job was started with {expected}")


def _unpacked(batch: Row) -> Iterator[Any]:
    return iter(batch[_COLUMN])


def _packed(values: Iterable[object]) -> Row:
    found = list(values)
    column = np.empty(len(found), object)  # filled one by one: numpy would unpack tuples
    for i, value in enumerate(found):
        column[i] = value
    return {_COLUMN: column}
