"""A SentencePiece normalizer as its files hold it: a double-array trie of replacements.

The layout is that of `precompiled_charsmap` in sentencepiece_model.proto: the trie's size in bytes
(little-endian), its units, and the replacements, each ended by a zero. A unit holds a label (bits 0
to 7), whether the node has a value (8) and the offset to its children (10 and up); the unit of a
value has bit 31 set and the place of the replacement: https://github.com/s-yata/darts-clone.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_LEAF, _VALUE = 1 << 8, 1 << 31

# Blocks of the basic plane in which NFKC changes something that people write.
_RANGES = (
    (0x00A0, 0x0180),
    (0x02B0, 0x02E0),
    (0x2000, 0x2500),
    (0x3000, 0x3030),
    (0x3130, 0x3190),
    (0xFB00, 0xFB07),
    (0xFF00, 0xFFF0),
)
_SPACES = "\t\n\r\u1680\u200b\u200e\u200f\u2028\u2029\ufeff"
_DROPPED = "".join(map(chr, (*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F)))


def nmt_nfkc() -> bytes:
    """The map that T5, XLM-R and ALBERT have: NFKC, other spaces as a space, no controls."""
    found = dict.fromkeys(_SPACES, " ") | dict.fromkeys(_DROPPED, "")
    for first, last in _RANGES:
        for character in map(chr, range(first, last)):
            normal = unicodedata.normalize("NFKC", character)
            if normal != character:
                found.setdefault(character, normal)
            composed = unicodedata.normalize("NFD", character)
            if len(composed) == 2:
                found[composed] = unicodedata.normalize("NFC", composed)
    return encode(found)


def encode(replacements: Mapping[str, str]) -> bytes:
    """Return the bytes of a map from text to text; no key is empty, none has a zero in it."""
    root, blob = _Node(), bytearray()
    for key, value in sorted(replacements.items()):
        node = root
        for byte in key.encode():
            node = node.children.setdefault(byte, _Node())
        node.value = len(blob)
        blob += value.encode() + b"\0"
    units = _units(root)
    size = 256 * -(-max(units) // 256)
    packed = struct.pack(f"<{size}I", *(units.get(i, 0) for i in range(size)))
    return struct.pack("<I", len(packed)) + packed + bytes(blob)


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    value: int | None = None


def _units(root: _Node) -> dict[int, int]:
    """Place every node: children of the node at p lie at p ^ offset ^ their byte."""
    units = {0: 0}
    lowest = 1
    waiting = [(0, 0, root)]
    while waiting:
        place, label, node = waiting.pop()
        bytes_ = [*([0] if node.value is not None else []), *node.children]
        base = next(b for b in _bases(lowest) if all(b ^ byte not in units for byte in bytes_))
        while lowest in units:
            lowest += 1
        units[place] = (place ^ base) << 10 | label | (_LEAF if node.value is not None else 0)
        if node.value is not None:
            units[base] = _VALUE | node.value
        for byte, child in node.children.items():
            units[base ^ byte] = 0  # taken; written when it is its turn
            waiting.append((base ^ byte, byte, child))
    return units


def _bases(lowest: int) -> Iterator[int]:
    base = max(1, lowest & ~0xFF)
    while True:
        yield base
        base += 1
