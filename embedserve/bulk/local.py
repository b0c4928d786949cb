"""Embeds chunks on the lanes of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

from embedserve.bulk.chunks import Chunk, Cut, Reader
from embedserve.bulk.maker import Maker
from embedserve.bulk.parts import Part
from embedserve.bulk.pipeline import Pipeline, Work

# While lanes run one chunk, the next is tokenized; more would only take memory.
AHEAD = 2


class Local:
    """Embeds chunks one after the other, without a gap between them."""

    def __init__(self, pipeline: Pipeline, reader: Reader, maker: Maker) -> None:
        self._pipeline, self._reader, self._maker = pipeline, reader, maker
        self._waiting: deque[tuple[Chunk, Work]] = deque()

    @property
    def texts(self) -> int:
        """Texts embedded so far."""
        return self._pipeline.texts

    @property
    def tokens(self) -> int:
        """Tokens embedded so far."""
        return self._pipeline.tokens

    @property
    def place(self) -> float:
        """How much of the open chunks is done, in bytes of the input, or in rows of Parquet."""
        return sum(
            (chunk.cut.end - chunk.cut.start) * work.part_done
            for chunk, work in tuple(self._waiting)
        )

    def parts(self, cuts: Iterable[Cut]) -> Generator[Part, None, None]:
        """The part of each chunk, in order."""
        for cut in cuts:
            chunk = self._reader.read(cut)
            self._waiting.append((chunk, self._pipeline.submit(chunk.texts)))
            if len(self._waiting) == AHEAD:
                yield self._first()
        while self._waiting:
            yield self._first()

    def close(self) -> None:
        """End the lanes."""
        self._pipeline.close()

    def _first(self) -> Part:
        chunk, work = self._waiting[0]
        embedded = work.future.result()
        self._waiting.popleft()
        return self._maker.part(chunk, embedded)
