"""Makes export/prose.txt.gz of this Python's own documentation: python -m tests.make_prose

Done once, with Python 3.11: another version gives other texts, and certificates are compared only
over the same ones.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import io
import random
import re
import sys
from collections.abc import Iterator

from export.prose import FILE, QUERIES

PASSAGES = 3_500
# Without prose, or with side effects when they are imported.
_SKIPPED = frozenset(
    {
        *("__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle"),
        "turtledemo",
    }
)
_CODE = (">>>", "::", "==", "->", "--", "{", "}", "|", "=>", "<", ">", "\\", "[1]")


def paragraphs() -> Iterator[str]:
    """Of the language reference, then of each module's documentation strings."""
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [topics[name] for name in sorted(topics)]
    for name in sorted(sys.stdlib_module_names - _SKIPPED):
        if not name.startswith("_"):
            texts += documented(name)
    for text in texts:
        yield from re.split(r"\n\s*\n", text)


def documented(name: str) -> list[str]:
    """A module's documentation strings; none where it cannot be imported here."""
    try:
        module = importlib.import_module(name)
    except Exception:  # of another system
        return []
    found: list[object] = [module]
    for _, member in sorted(vars(module).items()):
        is_code = inspect.isclass(member) or inspect.isroutine(member)
        if is_code and getattr(member, "__module__", None) == name:
            found.append(member)
            methods = sorted(vars(member).items()) if inspect.isclass(member) else ()
            found += [method for _, method in methods if inspect.isroutine(method)]
    return [inspect.getdoc(one) or "" for one in found]


def cleaned(paragraph: str) -> str:
    """On one line, without marks of emphasis and code."""
    return re.sub(r'["*`]', "", " ".join(paragraph.split())).strip()


def is_prose(text: str) -> bool:
    """Whole English sentences, hardly any signs."""
    if not 60 <= len(text) <= 900 or not text.isascii() or not text.endswith("."):
        return False
    if not re.match(r"[A-Z][a-z]", text) or any(sign in text for sign in _CODE):
        return False
    letters = sum(letter.isalpha() or letter in " ,.'" for letter in text)
    return letters > 0.95 * len(text) and len(text.split()) >= 9


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[a-z0-9)'][.?!]) (?=[A-Z])", text)


def runs(text: str) -> Iterator[str]:
    """Runs of sentences of 80 characters and more."""
    run = ""
    for sentence in sentences(text):
        if len(run) >= 80:
            yield run
            run = ""
        run = f"{run} {sentence}".strip()
    if len(run) >= 45:
        yield run


def main() -> None:
    """Draw queries from some paragraphs, and make passages of the others."""
    # Those that begin alike are variants of one.
    prose = {text.lower()[:60]: text for text in map(cleaned, paragraphs()) if is_prose(text)}
    texts = list(prose.values())
    draw = random.Random(20261128)  # noqa: S311  # the same texts every time
    draw.shuffle(texts)
    queries: dict[str, None] = {}
    used: set[str] = set()
    for text in texts:
        short = [sentence for sentence in sentences(text) if 30 <= len(sentence) <= 140]
        if short and len(text) <= 260 and len(queries) < QUERIES + 50:
            queries[draw.choice(short)] = None
            used.add(text)
    passages = list(dict.fromkeys(run for text in texts if text not in used for run in runs(text)))
    whole = "\n".join(passages)
    chosen = [query for query in queries if query not in whole][:QUERIES]
    draw.shuffle(passages)
    lines = [*chosen, *passages[:PASSAGES]]
    assert len(lines) == QUERIES + PASSAGES
    content = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=content, mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))
    FILE.write_bytes(content.getvalue())
    print(f"{FILE}: {len(content.getvalue())} bytes")


if __name__ == "__main__":
    main()
