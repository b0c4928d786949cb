"""Texts for benchmarks: English of mixed lengths and short queries, all different, always the same.

embedserve computes equal texts that are in flight once, so no benchmark may have equal texts.
"""

from __future__ import annotations

import random

from embedserve.diagnose import sample_texts

MODEL = "all-MiniLM-L6-v2"
# About 27 tokens in the median; the longest have less than the 256 that every peer reads.
LONGEST = 900  # characters
# The loads: clients with one short text, clients with BATCH mixed ones, an indexer's clients.
CLIENTS, BATCH_CLIENTS, BATCH, BULK_CLIENTS = 32, 4, 32, 2
BULK_SIZES = (32, 64, 96, 128, 192, 256)
QUERIES = (
    "what is an embedding",
    "how do I reset my password",
    "weather in Lisbon tomorrow",
    "cheap flights to Tokyo in April",
    "python list comprehension with condition",
    "symptoms of vitamin D deficiency",
    "capital of Australia",
    "difference between TCP and UDP",
)


def mixed(count: int = 2048) -> list[str]:
    """Return docstrings' English as queries, sentences and passages are mixed."""
    wanted = [text for text in sample_texts.texts(2 * count) if len(text) <= LONGEST]
    return _different(wanted)[:count]


def short(count: int = 512) -> list[str]:
    """Return queries of three to eight words: eight made up, the others cut from docstrings."""
    draw = random.Random(2)  # noqa: S311  # the same texts every time
    cut = [" ".join(text.split()[: draw.randint(3, 8)]) for text in sample_texts.texts(4 * count)]
    return _different([*QUERIES, *(text for text in cut if text.count(" ") >= 2)])[:count]


def batches(size: int = BATCH) -> list[list[str]]:
    """Return requests of `size` mixed texts."""
    texts = mixed()
    return [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]


def bulk() -> list[list[str]]:
    """Return an indexer's requests, of 32 to 256 mixed texts."""
    texts, requests = mixed(), []
    draw = random.Random(3)  # noqa: S311  # the same requests every time
    while len(texts) >= BULK_SIZES[-1]:
        size = draw.choice(BULK_SIZES)
        requests.append(texts[:size])
        del texts[:size]
    return requests


def _different(texts: list[str]) -> list[str]:
    """The first of each that a tokenizer without case sees as one text."""
    return list({text.lower(): text for text in reversed(texts)}.values())[::-1]
