"""What a sequence costs, and which lengths may share a pass with it: Shape; pure."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

# The largest share of padding in a pass. Values from 0.1 to 0.3 are within 3 % of each other (mixed
# English, 256 tokens per pass, two lanes).
MAX_PADDING = 0.2
# Or this many padding tokens, which cost less than a separate pass for the short texts: the fixed
# cost of a pass is that of some 13 tokens (1.7 ms, and 0.13 ms per token, all-MiniLM-L6-v2).
FREE_PADDING = 13


@dataclass(frozen=True, slots=True)
class Shape:
    """What scheduling must know of a model. Sequences share passes when their shapes are equal.

    A sequence of t tokens costs t * (1 + t / quadratic): at t = quadratic attention costs as much
    as the rest. masked_up_to: longer sequences must run without padding.
    """

    name: Hashable
    quadratic: float
    masked_up_to: int | None = None

    def cost(self, tokens: int) -> float:
        """Work of one sequence, in tokens of a short text; one without tokens is padded to one."""
        tokens = max(1, tokens)
        return tokens * (1 + tokens / self.quadratic)

    def near(self, tokens: int) -> range:
        """The lengths that may share a pass with a sequence of `tokens`."""
        if self.masked_up_to is not None and tokens > self.masked_up_to:
            return range(tokens, tokens + 1)
        shortest = min(math.ceil(tokens * (1 - MAX_PADDING)), tokens - FREE_PADDING)
        longest = max(math.floor(tokens / (1 - MAX_PADDING)), tokens + FREE_PADDING)
        return range(max(0, shortest), min(longest, self.masked_up_to or longest) + 1)
