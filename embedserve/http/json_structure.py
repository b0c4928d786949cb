"""Counts what a JSON body consists of as it arrives, before any of it is parsed.

A parser makes up to 40 bytes of objects of each byte of `{"":0},`, and 2 of each byte of a long
text. The difference shows in a few counts, which cost next to nothing.
"""

from __future__ import annotations

# What a request has beside its inputs: its fields, each with a colon, a comma and its text.
FIELDS = 1_000
# Bytes for each value. The worst accepted body is an array of arrays of integers; the parser's own
# 24 are included.
VALUE_BYTES = 64
# An accepted body has one object. Each of `{"":0}` costs 270 bytes.
MOST_OBJECTS = 16

_MARKS = (b",", b"[", b":")
# The UTF-8 bytes of characters up to U+00FF, and up to U+FFFF. A text of such characters takes 1
# byte a character, or 2.
_NARROW = bytes(range(0xC4))
_MIDDLE = bytes(range(0xF0))


class Structure:
    """Counts of a body that arrives in pieces.

    `values`: commas, colons and opening brackets outside strings, and strings: at least the number
    of values. `objects`: opening braces outside strings. `width`: the most bytes that a character
    of a text can take once it is parsed, 1, 2 or 4, because one wide character makes its whole text
    wide.

    For invalid JSON, the counts hold up to the first error, where parsing stops too.

    >>> structure = Structure()
    >>> structure.feed(b'{"input": ["a", "b,[')
    >>> structure.feed(b'c"]}')
    >>> structure.values, structure.objects, structure.width
    (6, 1, 1)
    """

    __slots__ = ("_escape", "_quotes", "objects", "values", "width")

    def __init__(self) -> None:
        self.values = 0
        self.objects = 0
        self.width = 1
        self._quotes = 0
        self._escape = False  # the last byte was a backslash that escapes the next one

    def feed(self, piece: bytes) -> None:
        """Count the next piece."""
        self._widen(piece)
        if self._escape:
            piece = b"\\" + piece
        self._escape = False
        if b"\\" in piece:
            piece = self._unescaped(piece)
        parts = piece.split(b'"')
        outside = b"".join(parts[self._quotes % 2 :: 2])
        before = self._quotes
        self._quotes += len(parts) - 1
        self.values += (self._quotes + 1) // 2 - (before + 1) // 2
        self.values += sum(map(outside.count, _MARKS))
        self.objects += outside.count(b"{")

    def _unescaped(self, piece: bytes) -> bytes:
        """The piece without escaped backslashes and quotes; a half escape at its end is kept."""
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2:
            self._escape = True
            piece = piece[:-1]
        if b"\\u" in piece:  # of any character: clients that escape all of them are rare
            self.width = 4
        return piece.replace(b"\\\\", b"").replace(b'\\"', b"")

    def _widen(self, piece: bytes) -> None:
        if self.width == 4 or piece.isascii():
            return
        if piece.translate(None, _MIDDLE):
            self.width = 4
        elif piece.translate(None, _NARROW):
            self.width = 2
