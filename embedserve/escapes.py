"""Text from elsewhere for a terminal or a log: what would steer either becomes an escape."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""One line of printable characters: all others as Python escapes.

    Others are control characters, line ends, what changes the direction of writing, and halves of
    surrogate pairs, which no stream can encode. A printable text is returned as it is.

    >>> escaped("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int) -> str:
    """At most about `most` characters of a text: its beginning and its end.

    >>> shortened("0123456789", 8)
    '0123 (2 characters left out) 6789'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ({len(text) - 2 * half} characters left out) {text[len(text) - half :]}"
