"""Checks that memory is available before calling libraries that abort when it is not."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

# Allocators already hold enough for smaller sizes; the check takes 4 us.
SMALL = 65_536
MARGIN = 16_000_000  # for what other threads allocate meanwhile


def check(size: int) -> None:
    """Raise MemoryError unless `size` more bytes can be allocated now; keeps none of them.

    orjson and the tokenizers library (Rust) abort the process when an allocation fails.
    """
    if size <= SMALL:
        return
    try:
        mmap.mmap(-1, size + MARGIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes") from error


def trim() -> None:
    """Give free heap pages back to the system, if the C library can (glibc).

    Takes milliseconds, without the GIL. Many small allocations leave heaps full of holes, which
    would otherwise stay resident.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
