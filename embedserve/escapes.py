"""Makes foreign text safe for a terminal or a log: control characters become escapes."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""Return the text as one printable line; other characters become Python escapes.

    These are control characters, line ends, marks that change the writing direction, and halves of
    surrogate pairs, which no stream can encode. Printable text is returned unchanged.

    >>> escaped("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int) -> str:
    """Shorten a text to about `most` characters: its beginning and its end.

    >>> shortened("0123456789", 8)
    '0123 (2 characters left out) 6789'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ({len(text) - 2 * half} characters left out) {text[len(text) - half :]}"
