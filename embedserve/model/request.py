"""What is asked of a model: texts or token ids, prompt, dimensions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from embedserve.artifact import Manifest
from embedserve.errors import RequestError

_INTEGER_BYTES, _LIST_BYTES = 48, 64  # an integer in its list, and a list beside its integers
InputType = Literal["query", "document"]
Truncate = Literal["error", "end", "start"]
# sentence-transformers' encode_query and encode_document look for these prompts, in this order.
INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "corpus", "search_document"),
}


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A well-formed request. `texts` or `token_ids` has 1 to max_inputs items."""

    model: str | None
    texts: list[str] | None
    token_ids: list[list[int]] | None
    dimensions: int | None = None
    input_type: InputType | None = None
    prompt_name: str | None = None
    truncate: Truncate = "end"

    @property
    def count(self) -> int:
        """How many vectors it asks for."""
        return len(self.texts or self.token_ids or ())

    def held_bytes(self, size: int) -> int:
        """What its inputs take, parsed of `size` bytes.

        A tokenizer makes UTF-8 of a text that is not ASCII, and the text keeps it.
        """
        if self.texts is None:
            ids = sum(map(len, self.token_ids or ()))
            return _INTEGER_BYTES * ids + _LIST_BYTES * self.count
        sizes = sum(map(sys.getsizeof, self.texts))
        return sizes if all(map(str.isascii, self.texts)) else sizes + size


def prompt(manifest: Manifest, prompt_name: str | None, input_type: InputType | None = None) -> str:
    """Return the text put before each input: none unless asked for or the model's default."""
    prompts = manifest.prompts
    if input_type is not None:
        declared = [prompts[name] for name in INPUT_TYPES[input_type] if name in prompts]
        if not declared:
            raise _no_prompt(manifest, "input_type", input_type)
        # Files saved by sentence-transformers 5 declare an empty "document" beside "passage".
        return next(filter(None, declared), "")
    wanted = prompt_name or manifest.default_prompt_name
    if wanted is None:
        return ""
    if wanted not in prompts:
        raise _no_prompt(manifest, "prompt_name", wanted)
    return prompts[wanted]


def components(manifest: Manifest, dimensions: int | None) -> int:
    """How many components a vector is asked to have; RequestError where the model has no such."""
    own = manifest.dimension
    if dimensions is None or dimensions == own:
        return own
    if manifest.matryoshka and 1 <= dimensions <= own:
        return dimensions
    accepted = f"1 to {own}" if manifest.matryoshka else f"only {own}"
    raise RequestError(
        "dimensions_not_supported",
        f"dimensions is {dimensions}; {manifest.name} accepts {accepted}",
        "dimensions",
    )


def _no_prompt(manifest: Manifest, param: str, found: str) -> RequestError:
    known = ", ".join(manifest.prompts) or "none"
    return RequestError(
        "prompt_not_found",
        f"{param} is {found[:64]!r}; prompts of {manifest.name}: {known}",
        param,
    )
