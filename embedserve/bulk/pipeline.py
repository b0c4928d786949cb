"""Texts -> vectors as fast as these cores allow: lanes that always have work, and nothing else.

A lane takes one piece of work at a time: a slice of texts to tokenize, or a pass. Slices go first.
Once all of a chunk is tokenized it is cut into passes, from its longest text to its shortest, so
that the lengths in each pass are similar. The passes of the next chunk follow without a gap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import PriorityQueue
from typing import NamedTuple

import numpy as np

from embedserve.arrays import finishing
from embedserve.arrays.types import Floats, Ints
from embedserve.bulk.chunks import Problem
from embedserve.engine.lanes import THREADS
from embedserve.errors import RequestError
from embedserve.model.cost import Shape
from embedserve.model.model import Model
from embedserve.model.request import Truncate
from embedserve.model.stop import Stop
from embedserve.model.tokenizer import SLICE_CHARACTERS, slices

# Priorities: a lane takes the lowest first.
END, TOKENIZE, RUN = 0, 1, 2
_NON_FINITE = Problem("non_finite_embedding", "the vector has a NaN, an infinity or only zeros")


@dataclass(frozen=True, slots=True)
class How:
    """What is done to every text: the prompt, how it is truncated, the dimensions kept."""

    prompt: str
    truncate: Truncate
    dimensions: int


@dataclass(frozen=True, slots=True)
class EmbeddedChunk:
    """Vectors (n, dim) float32 of a chunk's texts. A missing one is NaN; `problems` says why."""

    vectors: Floats
    problems: dict[int, Problem]
    tokens: int
    truncated: int


@dataclass(slots=True, eq=False)
class Work:
    """A chunk in progress. Lanes that run its passes write to it under the pipeline's lock."""

    texts: Sequence[str | None]
    vectors: Floats
    future: Future[EmbeddedChunk] = field(default_factory=Future)
    problems: dict[int, Problem] = field(default_factory=dict)
    # By index: the ids and their number before truncation.
    encoded: dict[int, tuple[Ints, int] | Problem] = field(default_factory=dict)
    # Each sequence's indexes in the chunk: texts often repeat in a corpus.
    places: dict[bytes, list[int]] = field(default_factory=dict)
    sequences: list[Ints] = field(default_factory=list)
    tokens: int = 0
    tokens_done: int = 0
    truncated: int = 0
    left: int = 0  # slices to tokenize, then passes to run

    @property
    def part_done(self) -> float:
        """The share of its tokens that was run, 0 to 1; 0 until all texts are tokenized."""
        return self.tokens_done / self.tokens if self.tokens else 0.0


class _Item(NamedTuple):
    priority: int
    number: int
    do: Callable[[], None] | None


class Pipeline:
    """Lanes on one model. Any thread may call `submit`, for one chunk after the other."""

    def __init__(self, model: Model, how: How, lanes: int, tokens_per_pass: int) -> None:
        self._encoder, self._tokenizer, self._how = model.encoder, model.tokenizer, how
        self._budget = tokens_per_pass
        self._queue: PriorityQueue[_Item] = PriorityQueue()
        self._lock = threading.Lock()
        self._number = 0
        self.texts = self.tokens = 0  # embedded so far
        self._closed = False
        self._stops: dict[int, Stop] = {}  # by thread: stops the pass that it runs
        self._threads = [
            threading.Thread(target=self._serve, name=f"{THREADS}{i}", daemon=True)
            for i in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, texts: Sequence[str | None]) -> Work:
        """Start a chunk; its future gives the vectors. A text that is None gets no vector."""
        work = Work(texts, np.full((len(texts), self._encoder.dimension), np.nan, np.float32))
        places = [place for place, text in enumerate(texts) if text is not None]
        asked = [text for text in texts if text is not None]
        parts = list(slices(asked, self._how.prompt, SLICE_CHARACTERS))
        work.left = len(parts)
        if not parts:
            self._finish(work)
        for first, part in parts:
            self._put(TOKENIZE, work, self._tokenize, places[first : first + len(part)], part)
        return work

    def close(self) -> None:
        """End the lanes and the passes that they run. Work that is left is dropped."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(self._item(END, None))
        for stop in list(self._stops.values()):
            stop.ask()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (do := self._queue.get().do) is not None:
            do()

    def _put(self, priority: int, work: Work, do: Callable[..., None], *arguments: object) -> None:
        self._queue.put(self._item(priority, partial(self._guarded, work, do, *arguments)))

    def _item(self, priority: int, do: Callable[[], None] | None) -> _Item:
        with self._lock:
            self._number += 1
            return _Item(priority, self._number, do)

    def _guarded(self, work: Work, do: Callable[..., None], *arguments: object) -> None:
        """Do one piece of work. Whatever it raises goes to the chunk's future."""
        try:
            do(work, *arguments)
        except BaseException as error:
            with self._lock:
                if not work.future.done():
                    work.future.set_exception(error)

    def _tokenize(self, work: Work, places: list[int], texts: list[str]) -> None:
        for place, found in zip(places, self._encoded(texts), strict=True):
            work.encoded[place] = found
        with self._lock:
            work.left -= 1
            last = work.left == 0
        if last:
            self._cut(work)

    def _encoded(self, texts: list[str]) -> list[tuple[Ints, int] | Problem]:
        """Each text's ids and their number before truncation, or why it has none."""
        try:
            encoded = self._tokenizer.encode(texts, self._how.prompt, self._how.truncate)
        except RequestError as error:
            if len(texts) > 1:  # one of them failed: encode each alone, to see which
                return [alone for text in texts for alone in self._encoded([text])]
            return [Problem(error.code, error.message.replace("input[0]", "the text"))]
        return list(zip(encoded.sequences, encoded.totals, strict=True))

    def _cut(self, work: Work) -> None:
        for place, found in sorted(work.encoded.items()):
            if isinstance(found, Problem):
                work.problems[place] = found
                continue
            ids, total = found
            work.places.setdefault(ids.tobytes(), []).append(place)
            work.tokens += len(ids)
            work.truncated += len(ids) < total
        work.encoded.clear()
        work.sequences = [np.frombuffer(ids, np.int64) for ids in work.places]
        lengths = [len(ids) for ids in work.sequences]
        passes = list(cut(lengths, self._encoder.shape, self._budget))
        work.left = len(passes)
        if not passes:
            self._finish(work)
        for numbers in passes:
            self._put(RUN, work, self._run, numbers)

    def _run(self, work: Work, numbers: list[int]) -> None:
        sequences = [work.sequences[number] for number in numbers]
        rows = self._rows(sequences)
        with self._lock:
            for ids, row in zip(sequences, rows, strict=True):
                places = work.places[ids.tobytes()]
                if isinstance(row, Problem):
                    work.problems.update(dict.fromkeys(places, row))
                else:
                    work.vectors[places] = row
                self.texts += len(places)
                self.tokens += len(places) * len(ids)
                work.tokens_done += len(places) * len(ids)
            work.left -= 1
            last = work.left == 0
        if last:
            self._finish(work)

    def _rows(self, sequences: list[Ints]) -> list[Floats | Problem]:
        """Run one pass. If it fails, run each half, until the bad sequence fails alone."""
        encoder, stop = self._encoder, Stop()
        self._stops[threading.get_ident()] = stop
        if self._closed:
            stop.ask()
        try:
            rows = encoder.run(sequences, stop=stop)
        except Exception as error:  # whatever a pass raises
            alone = len(sequences) == 1
            if self._closed or (alone and isinstance(error, MemoryError)):
                raise
            if alone:
                return [Problem("inference_failed", f"the forward pass failed: {error}")]
            middle = len(sequences) // 2
            return self._rows(sequences[:middle]) + self._rows(sequences[middle:])
        usable = zip(rows, encoder.usable(rows), strict=True)
        return [row if is_usable else _NON_FINITE for row, is_usable in usable]

    def _finish(self, work: Work) -> None:
        vectors = work.vectors
        if self._how.dimensions != self._encoder.dimension:
            vectors = finishing.truncate(vectors, self._how.dimensions)
        work.future.set_result(EmbeddedChunk(vectors, work.problems, work.tokens, work.truncated))


def cut(lengths: Sequence[int], shape: Shape, tokens_per_pass: int) -> Iterator[list[int]]:
    """Indexes of each pass's sequences, longest first: similar lengths, within the budget."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        shortest = shape.near(longest).start
        room = max(1, tokens_per_pass // max(1, longest))
        taken = [i for i in order[start : start + room] if lengths[i] >= shortest]
        yield taken
        start += len(taken)
