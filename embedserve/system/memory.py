"""Whether memory can be had: asked before libraries that end the process where it cannot."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

# What is smaller comes out of what allocators hold; asking takes 4 us.
SMALL = 65_536
MARGIN = 16_000_000  # for what other threads take meanwhile


def check(size: int) -> None:
    """MemoryError unless `size` bytes more can be had now; they are not kept.

    orjson and the tokenizers' Rust end the process on an allocation that fails.
    """
    if size <= SMALL:
        return
    try:
        mmap.mmap(-1, size + MARGIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes") from error


def trim() -> None:
    """Return free pages of every heap, where the C library can (glibc); milliseconds, no GIL.

    What many small pieces filled is full of holes afterwards, and stays resident without this.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
