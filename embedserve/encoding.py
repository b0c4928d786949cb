"""Rows of float32 -> base64, all rows at once.

The standard library encodes 450 MB/s; OpenAI's clients ask for base64 by default, and 2,048 rows
of 384 are 3 MB. Table look-ups in numpy are twice as fast on many rows.
"""

from __future__ import annotations

import binascii

import numpy as np
from numpy.typing import NDArray

from embedserve.pooling import Floats

# Below this many bytes numpy's calls cost more than they save.
_FEW_BYTES = 16_384
# Bytes per step: source, indexes and result stay in a core's cache.
_STEP = 384 * 1024


def base64_rows(rows: Floats) -> list[bytes | memoryview]:
    """Return the base64 of each row's little-endian float32: rows (n, dim) -> n pieces of ASCII.

    Format: RFC 4648, section 4, with padding.
    """
    data = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    if data.size < _FEW_BYTES:
        return [binascii.b2a_base64(row, newline=False) for row in data]
    missing = -data.shape[1] % 3  # zero bytes that fill each row's last group of three
    if missing:
        data = np.pad(data, ((0, 0), (0, missing)))
    width = data.shape[1] // 3 * 4
    text = _encode(data.reshape(-1)).reshape(-1, width)
    if missing:
        text[:, width - missing :] = ord("=")
    raw = text.data.cast("B")
    return [raw[i : i + width] for i in range(0, len(raw), width)]


def _tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Two characters for each pair of neighbouring bytes: the first two of a group, the last two.

    Indexed by the pair read as a little-endian number; so are the two characters.
    """
    alphabet = np.frombuffer(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8
    ).astype(np.uint16)
    pair = np.arange(65_536)
    a, b = pair & 255, pair >> 8
    first = alphabet[a >> 2] | alphabet[(a & 3) << 4 | b >> 4] << 8
    last = alphabet[(a & 15) << 2 | b >> 6] | alphabet[b & 63] << 8
    return first.astype("<u2"), last.astype("<u2")


_FIRST, _LAST = _tables()


def _encode(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode bytes (3 k,) to characters (4 k,) uint8."""
    out = np.empty((len(data) // 3, 2), "<u2")
    for start in range(0, len(data), _STEP):
        step = data[start : start + _STEP]
        groups, place = len(step) // 3, slice(start // 3, start // 3 + len(step) // 3)
        # Bytes 0-1 and 1-2 of each group of three, read where they stand.
        pairs = [np.ndarray((groups,), "<u2", step.data, offset, (3,)) for offset in (0, 1)]
        out[place, 0] = _FIRST.take(pairs[0], mode="clip")
        out[place, 1] = _LAST.take(pairs[1], mode="clip")
    return out.view(np.uint8).reshape(-1)
