"""How long the longest compared text may be, given the memory and the time it takes."""

from __future__ import annotations

from export import memory
from export.facts import Facts

# A model's limit up to this many tokens is always compared in full, whatever it takes.
_LEAST = 512

# Operations that the longest text may take in the reference: 2 minutes on the two cores that it
# was measured on (150 GFLOP/s).
_OPERATIONS = 2e13

# Bytes for each token and component of the hidden states: those of a layer's feed-forward part, of
# queries, keys and values, and copies of them.
_BYTES_PER_COMPONENT = 4 * 24


def longest(facts: Facts, available: int | None = None) -> int:
    """The model's limit, or the largest half, quarter, ... of it that memory and time allow.

    `available`: bytes of memory; None: what the machine has now.
    """
    free = memory.available() if available is None else available
    tokens = facts.max_tokens
    while tokens > _LEAST and not _fits(facts, tokens, free):
        tokens = max(_LEAST, tokens // 2)
    return tokens


def _fits(facts: Facts, tokens: int, available: int) -> bool:
    # Two operations for each weight and token; attention grows with the square of the tokens.
    layers = max(1, facts.weight_bytes // (4 * 12 * facts.hidden_size**2))
    operations = facts.weight_bytes / 2 * tokens + 4.0 * layers * tokens**2 * facts.hidden_size
    needed = 2 * facts.weight_bytes + tokens * facts.hidden_size * _BYTES_PER_COMPONENT
    # A mask (t, t) of floats, with two copies.
    needed += 3 * 4 * tokens**2
    return operations <= _OPERATIONS and needed <= available
