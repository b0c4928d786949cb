"""Process-wide settings: those made at the start, and those made once models are loaded."""

from __future__ import annotations

import gc
import os
import sys


def prepare() -> None:
    """Call at the start, before anything is tokenized."""
    # Lanes and the tokenizer's thread share the cores; rayon's own pool would compete with them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Between two passes a lane gets the GIL from the event loop within 0.1 ms instead of 5 ms: 8 %
    # more requests per second with 32 clients and one short text each.
    sys.setswitchinterval(0.0001)


def tokenize_with(threads: int) -> None:
    """Let `threads` threads tokenize a batch of texts, for when no lane needs the cores.

    Call before the first batch: the library creates its thread pool then and never resizes it.
    """
    if threads > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(threads)


def settle() -> None:
    """Call once everything is loaded.

    Objects made at the start stay, and requests make almost no reference cycles. Collecting less
    often gives 3 % more requests per second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)
