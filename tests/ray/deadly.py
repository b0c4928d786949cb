"""`embedserve` with workers that die of the text `deadly`, as of one that takes all memory."""

from __future__ import annotations

import os

from embedserve.bulk import ray_cluster
from embedserve.bulk.chunks import Chunk
from embedserve.bulk.parts import Part
from embedserve.cli import main
from embedserve.errors import StartupError


class Deadly(ray_cluster.Embed):
    """Ends its process without a word."""

    def _part(self, chunk: Chunk | StartupError) -> Part | StartupError:
        if isinstance(chunk, Chunk) and "deadly" in chunk.texts:
            os._exit(1)
        return super()._part(chunk)


if __name__ == "__main__":
    ray_cluster.Embed = Deadly  # type: ignore[misc]
    ray_cluster.ROUND, ray_cluster.ALONE = 5, 4  # several rounds, as a file of millions of rows has
    main()
