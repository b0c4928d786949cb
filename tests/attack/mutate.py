"""Inputs of the fuzzer: entries of a corpus, changed at random, cut into steps of a form."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.attack.forms import KEY, LEAVES, Form, Step

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 4_000_000  # of an input
PATHS = (
    (b"/v1/embeddings",) * 6
    + (b"/v1/tokenize",) * 3
    + (b"/openai/v1/embeddings", b"/v1/models", b"/metrics", b"/v1/tokenize?a=%00")
)
TOKENS = tuple(
    b"\r\n|\r\n\r\n|\n|\r|\0|:| |\t|;|,|\xff|\xc3|\xe2\x80\xa8|Content-Length: |"
    b"Content-Length: 5\r\n|"
    b"Transfer-Encoding: chunked\r\n|Transfer-Encoding: gzip\r\n|chunked|identity|"
    b"Connection: close\r\n|Connection: keep-alive\r\n|Upgrade: h2c\r\nConnection: Upgrade\r\n|"
    b"Expect: 100-continue\r\n|Host: y\r\n|Accept: application/octet-stream\r\n|"
    b"X-Request-Timeout: 0.001\r\n|Accept-Encoding: gzip\r\n|Content-Encoding: gzip\r\n|"
    b"GET |HEAD |POST |OPTIONS |HTTP/1.1|HTTP/1.0|HTTP/2.0|http://x|/livez|/../|%00|%2f|?|#|"
    b"0\r\n\r\n|ffffffffffffffff|1\r\nx\r\n|;a=b|"
    b'{|}|[|]|"|\\|\\u0000|\\ud800|\\udfff|\\u|\\x|"input"|"input":["a"],|"model"|"dimensions":|'
    b"null|true|NaN|Infinity|-0|1e999|1.0|0x1|/*|//|\xef\xbb\xbf|\xf0\x9f\x98\x80|\xed\xa0\x80".split(
        b"|"
    )
)
NUMBERS = (0, 1, -1, 2, 5, 255, 2048, 65_535, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30)
_NUMBER = re.compile(rb"\d+")
_SEED_BYTES = 2_048  # entries of the corpus are at most so long


class Entry(NamedTuple):
    """One of the corpus: a body (NAME.json), or what is sent as it is (NAME.http)."""

    data: bytes
    is_body: bool


def corpus(*folders: Path) -> list[Entry]:
    """All entries, in the order of their names."""
    files = [path for folder in folders for path in sorted(folder.glob("*.*"))]
    return [
        Entry(path.read_bytes(), path.suffix == ".json")
        for path in files
        if path.suffix in (".json", ".http")
    ]


def _some(random: Random, data: bytes, most: int = 200) -> tuple[int, int]:
    """Where a piece of data begins and ends."""
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.randint(0, most))


def _cut(random: Random, data: bytes) -> bytes:
    start, end = _some(random, data)
    return data[:start] + data[end:]


def _end(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _repeat(random: Random, data: bytes) -> bytes:
    start, end = _some(random, data, random.choice((1, 10, 100, 2_000)))
    times = int(10 ** random.uniform(0.3, random.choice((1, 2, 3, 6))))
    times = min(times, (MOST_BYTES - len(data)) // max(1, end - start))
    return data[:start] + data[start:end] * max(1, times) + data[end:]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, data: bytes) -> bytes:
    start, end = _some(random, data, random.choice((0, 0, 4)))
    return data[:start] + random.choice(TOKENS) + data[end:]


def _insert_after_a_line(random: Random, data: bytes) -> bytes:
    """A token where a field begins."""
    ends = [found.end() for found in re.finditer(rb"\r\n", data[:_SEED_BYTES])]
    start = random.choice(ends) if ends else 0
    return data[:start] + random.choice(TOKENS) + data[start:]


def _renumber(random: Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data[:_SEED_BYTES]))
    if not found:
        return data
    one = random.choice(found)
    number = random.choice((*NUMBERS, int(one[0][:20]) + random.choice((-1, 1))))
    return data[: one.start()] + b"%d" % number + data[one.end() :]


OPERATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _cut,
    _end,
    _repeat,
    _flip,
    _insert,
    _insert,
    _insert_after_a_line,
    _renumber,
)


def _changed(random: Random, data: bytes, most: int) -> bytes:
    for _ in range(random.randint(0, most)):
        data = random.choice(OPERATIONS)(random, data)
    return data[:MOST_BYTES]


def _spliced(random: Random, one: bytes, other: bytes) -> bytes:
    return one[: random.randrange(len(one) + 1)] + other[random.randrange(len(other) + 1) :]


def _chunked(random: Random, body: bytes) -> bytes:
    most = random.choice((1, 7, 100, 100_000))
    pieces: list[bytes] = []
    while body and len(pieces) < 1_000:
        size = random.randint(1, most)
        pieces.append(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
        body = body[size:]
    return b"".join(pieces) + b"0\r\n\r\n"


def _posted(random: Random, body: bytes) -> bytes:
    """A body in a request whose framing is right."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % random.choice(
        PATHS
    )
    head += b"Authorization: Bearer %b\r\n" % KEY.encode()
    if random.random() < 0.3:
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(random, body)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def _request(random: Random, entries: list[Entry]) -> bytes:
    entry = random.choice(entries)
    data = entry.data
    if random.random() < 0.15:
        others = [other.data for other in entries if other.is_body == entry.is_body]
        data = _spliced(random, data, random.choice(others))
    data = _changed(random, data, 5)
    if entry.is_body:
        data = _posted(random, data)
        if random.random() < 0.2:
            data = _changed(random, data, 2)
    if random.random() < 0.3:
        data = data.replace(KEY.encode(), b"x")
    return data


def drawn(random: Random, entries: list[Entry]) -> Form:
    """An input: one to four requests, one after the other, in steps."""
    count = random.choice((1, 1, 1, 2, 4))
    data = b"".join(_request(random, entries) for _ in range(count))[:MOST_BYTES]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((0, 0, 1, 2, 6))))
    pause = random.choice((0.0, 0.002, 0.02))
    steps = tuple(
        Step(data[start:end], 1, pause)
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)
    )
    return Form(steps, random.random() < 0.85, random.choice((*LEAVES, "half-closes", "stays")))
