"""How much memory this process may come to use, by construction: printed at start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from embedserve.artifact import Manifest
from embedserve.host import Known
from embedserve.pending import ANSWER_COPIES, BODY_COPIES
from embedserve.settings import Settings

# Of a pass, in components of float32 per token and hidden component: the widest moment of a layer
# is the residual, the query, key and value, and the feed-forward's 4 + 4, with one copy of each.
_WIDTH = 24
_BAG_WIDTH = 2  # rows that were looked up, and their product with the mask
_HEAD = 32  # the narrowest head of a served model: the most heads
_SCORES = 2  # attention's scores and their softmax
# A head of 32 KiB as 100 fields (47 KB), what uvicorn and Python keep of a request (9 KB), 4 KB
# that were read ahead, and 8 KB with one answer that the client does not take (20 KB).
_CONNECTION = 80_000
# What allocators keep of what was given back, and growth of Python's own structures.
_SLACK = 64_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes: `loaded` is resident once all models are loaded; of the others, the most."""

    loaded: int
    passes: int
    pending: int
    cache: int
    connections: int

    @property
    def most(self) -> int:
        """What resident memory stays below."""
        parts = (self.loaded, self.passes, self.pending, self.cache, self.connections, _SLACK)
        return sum(parts)

    def advice(self, memory: Known[int] | None) -> str | None:
        """What to lower where this process may not have so much."""
        if memory is None or self.most <= memory.value:
            return None
        return (
            f"that may be more than the {memory.value / 1e6:.0f} MB there are ({memory.origin}): "
            "lower max_connections, max_pending_mb or cache_mb"
        )

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"memory: {self.loaded / 1e6:.0f} MB loaded, at most {self.most / 1e6:.0f} MB "
            f"(passes {self.passes / 1e6:.0f}, requests in flight {self.pending / 1e6:.0f}, cache "
            f"{self.cache / 1e6:.0f}, connections {self.connections / 1e6:.0f}, allocators "
            f"{_SLACK / 1e6:.0f})"
        )


def estimate(
    loaded: int, manifests: Iterable[Manifest], lanes: int, tokens_per_pass: int, settings: Settings
) -> Footprint:
    """Sum up what the settings allow. `loaded`: resident bytes now."""
    known = list(manifests)
    return Footprint(
        loaded=loaded,
        passes=lanes * max(_pass(manifest, tokens_per_pass, settings) for manifest in known),
        # The largest request is taken when it is alone, whatever the setting.
        pending=max(settings.max_pending_mb * 1_000_000, *(_largest(m, settings) for m in known)),
        cache=settings.cache_mb * 1_000_000,
        connections=settings.max_connections * _CONNECTION,
    )


def _largest(manifest: Manifest, settings: Settings) -> int:
    """Bytes that the largest request holds, its body and its answer."""
    answer = 4 * ANSWER_COPIES * settings.max_inputs * manifest.dimension
    return BODY_COPIES * settings.max_body_bytes + answer


def _pass(manifest: Manifest, tokens_per_pass: int, settings: Settings) -> int:
    """Bytes of the largest pass: the budget's, or one of the longest text alone."""
    longest = min(manifest.max_tokens, settings.max_request_tokens)
    tokens = max(tokens_per_pass, longest)
    if manifest.is_bag:
        return 4 * _BAG_WIDTH * manifest.hidden_size * tokens
    linear = 4 * _WIDTH * manifest.hidden_size * tokens
    # A budget of short texts has less: scores are of each text with itself.
    square = min(longest, manifest.masked_up_to or longest)
    rows = max(1, tokens_per_pass // square)
    heads = max(1, manifest.hidden_size // _HEAD)
    return linear + 4 * _SCORES * heads * rows * square * square
