"""Texts -> token ids as the model sees them: prompt, truncation, counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers

from embedserve.arrays.types import Ints
from embedserve.artifact import TOKENIZER, Manifest
from embedserve.errors import RequestError, StartupError
from embedserve.model.request import Truncate
from embedserve.model.steps import Step, Steps
from embedserve.system import memory

S = TypeVar("S", bound=Sized)

# Truncation does not bound a tokenizer's work (1 M CJK characters: 3.7 s at a limit of 256
# tokens), so characters are bounded first. No cut here: a text of very long words may still fit.
CHARACTERS_PER_TOKEN = 250
# As many as a limit of 32,768 tokens takes, the largest of a model with attention: a model of
# static embeddings has none.
MOST_CHARACTERS = 32_768 * CHARACTERS_PER_TOKEN
# Bulk jobs tokenize this many characters at a time: about 50 ms.
SLICE_CHARACTERS = 100_000
# A step of the server's: at most 40 ms, where each character costs the most (Greek in words of 99
# letters, 9.5 us; English 0.7). A longer text is a step of its own.
STEP_CHARACTERS = 4_000
# The overhead of a text, in characters.
_TEXT_CHARACTERS = 16
# What an array of ids takes beside its ids.
_ARRAY_BYTES = 112
# A table may have more rows than words, to make the number round: a few hundred in known models.
SPARE_ROWS = 4096
# What tokenizing takes for each character, at most (CJK, a token each): 110 bytes.
ENCODED_BYTES = 128


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of each text, (t_i,) int64 with special tokens, and their number before a cut."""

    sequences: list[Ints]
    totals: list[int]

    @property
    def truncated(self) -> list[int]:
        """Indexes of the texts that were cut."""
        return [i for i, ids in enumerate(self.sequences) if len(ids) < self.totals[i]]

    @property
    def tokens(self) -> int:
        """How many tokens the model will run."""
        return sum(len(ids) for ids in self.sequences)

    def extend(self, part: Encoded) -> None:
        """Add the texts that follow."""
        self.sequences.extend(part.sequences)
        self.totals.extend(part.totals)

    @property
    def bytes(self) -> int:
        """What the ids take."""
        return sum(ids.nbytes + _ARRAY_BYTES for ids in self.sequences)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model sees of one text: ids and tokens that are run, and their number before a cut."""

    ids: list[int]
    tokens: list[str]
    total: int


class Tokenizer:
    """A model's tokenizer with the settings of its manifest, never changed after load.

    Safe to call from several threads: nothing here is written after `__init__`. `threads`: how
    many share a batch (process.tokenize_with).
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 1) -> None:
        path = directory / TOKENIZER
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise StartupError(f"{path}: cannot be read as a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocabulary = manifest.vocabulary
        self._path = path
        self.max_tokens = manifest.max_tokens
        self.max_characters = min(manifest.max_tokens * CHARACTERS_PER_TOKEN, MOST_CHARACTERS)
        self._takes_empty = manifest.is_bag
        self.step_characters = STEP_CHARACTERS * threads
        try:
            self._prefix, self._suffix = self._special_tokens(path)
        except StartupError:
            raise
        except Exception as error:  # no word for what it does not know, and the like
            raise StartupError(f"{path}: cannot tokenize: {error}") from error

    def encode(
        self, texts: Sequence[str], prompt: str = "", truncate: Truncate = "end", first: int = 0
    ) -> Encoded:
        """Tokenize prompt + text, each to at most `max_tokens` ids with special tokens.

        `truncate` says which end of a longer text is cut, or that it is an error. The
        library releases the GIL. `first` is the first text's index in its request, for errors.
        """
        self._check_characters(texts, prompt, first)
        memory.check(ENCODED_BYTES * (sum(map(len, texts)) + len(prompt) * len(texts)))
        encodings = self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        sequences = [np.array(encoding.ids, np.int64) for encoding in encodings]
        totals = [len(ids) for ids in sequences]
        for i, total in enumerate(totals):
            where = f"input[{first + i}]"
            if total == 0 and not self._takes_empty:
                raise RequestError("empty_input", f"{where} has no token of this model", where)
            if total <= self.max_tokens:
                continue
            if truncate == "error":
                raise RequestError(
                    "context_length_exceeded",
                    f"{where} has {total} tokens with special tokens and prompt; at "
                    f'most {self.max_tokens} are accepted. Shorten it, or send truncate: "end".',
                    where,
                )
            sequences[i] = self._cut(sequences[i], truncate)
        return Encoded(sequences, totals)

    def encoding(
        self, texts: list[str], prompt: str, truncate: Truncate, most: int
    ) -> Steps[Encoded]:
        """Do as `encode` does, in steps; RequestError as soon as there are `most` tokens."""
        whole = Encoded([], [])
        tokens = 0
        for first, part in slices(texts, prompt, self.step_characters):
            encoded = self.encode(part, prompt, truncate, first)
            tokens += encoded.tokens
            check_tokens(tokens, most)
            whole.extend(encoded)
            yield Step(cost(part, prompt), encoded.bytes)
        return whole

    def checking(self, sequences: list[list[int]], most: int) -> Steps[Encoded]:
        """Do as `check_token_ids` does, in steps; RequestError as soon as there are `most` ids."""
        whole = Encoded([], [])
        tokens = 0
        for first, part in slices(sequences, "", STEP_CHARACTERS):
            encoded = self.check_token_ids(part, first)
            tokens += encoded.tokens
            check_tokens(tokens, most)
            whole.extend(encoded)
            yield Step(cost(part, ""), encoded.bytes)
        return whole

    def tokens(
        self, texts: Sequence[str], prompt: str = "", truncate: Truncate = "end", first: int = 0
    ) -> list[Tokens]:
        """Tokenize as `encode` does, and show the tokens."""
        encoded = self.encode(texts, prompt, truncate, first)
        shown = []
        for ids, total in zip(encoded.sequences, encoded.totals, strict=True):
            names = [self._tokenizer.id_to_token(token) or "" for token in ids.tolist()]
            shown.append(Tokens(ids.tolist(), names, total))
        return shown

    def check_token_ids(self, sequences: Sequence[Sequence[int]], first: int = 0) -> Encoded:
        """Take the model's own token ids, as a client may send them where that is allowed."""
        for i, ids in enumerate(sequences, first):
            if len(ids) > self.max_tokens:
                raise RequestError(
                    "context_length_exceeded",
                    f"input[{i}] has {len(ids)} token ids; at most {self.max_tokens} are accepted",
                    f"input[{i}]",
                )
            for token in ids:
                if not 0 <= token < self.vocabulary:
                    raise RequestError(
                        "token_id_out_of_range",
                        f"input[{i}] has the token id {token}; accepted: 0 to "
                        f"{self.vocabulary - 1}",
                        f"input[{i}]",
                    )
        return Encoded([np.array(ids, np.int64) for ids in sequences], [len(i) for i in sequences])

    def check_vocabulary(self) -> None:
        """Hold the manifest's vocabulary against the words: some rows of a table have none."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        highest = max(ids, default=-1)
        if not highest < self.vocabulary <= 2 * len(ids) + SPARE_ROWS:
            raise StartupError(
                f"{self._path}: has {len(ids)} tokens up to {highest}, the manifest's vocabulary "
                f"is {self.vocabulary}"
            )

    def _check_characters(self, texts: Sequence[str], prompt: str, first: int) -> None:
        for i, text in enumerate(texts, first):
            if len(text) + len(prompt) > self.max_characters:
                raise RequestError(
                    "input_too_long",
                    f"input[{i}] has {len(text)} characters; at most "
                    f"{self.max_characters - len(prompt)} are accepted by this model",
                    f"input[{i}]",
                )

    def _cut(self, ids: Ints, truncate: Truncate) -> Ints:
        """Cut the content and keep the special tokens around it."""
        content = ids[self._prefix : len(ids) - self._suffix]
        left = self.max_tokens - self._prefix - self._suffix
        kept = content[:left] if truncate == "end" else content[len(content) - left :]
        tail = ids[len(ids) - self._suffix :] if self._suffix else ids[:0]
        return np.concatenate([ids[: self._prefix], kept, tail])

    def _special_tokens(self, path: Path) -> tuple[int, int]:
        """Count the special tokens put before and after a text, or refuse the tokenizer."""
        probe = self._probe()
        bare = self._tokenizer.encode(probe, add_special_tokens=False).ids
        full = self._tokenizer.encode(probe)
        if self.max_tokens < len(full.ids) - len(bare):
            raise StartupError(
                f"{path}: max_tokens is {self.max_tokens}, too few for the special tokens alone"
            )
        inside = [i for i, sequence in enumerate(full.sequence_ids) if sequence is not None]
        if inside and not any(full.type_ids):
            prefix, end = inside[0], inside[-1] + 1
            if full.ids[prefix:end] == bare:
                return prefix, len(full.ids) - end
        raise StartupError(
            f"{path}: its post-processor does more than put special tokens before and after a text "
            "(or gives token types other than 0); not supported"
        )

    def _probe(self) -> str:
        """Return a text that has a token: Latin letters, else a word of the vocabulary."""
        words = ("a b", *self._tokenizer.get_vocab(with_added_tokens=False))
        encode = self._tokenizer.encode
        return next((w for w in words if encode(w, add_special_tokens=False).ids), "a b")


def slices(texts: list[S], prompt: str, most: int) -> Iterator[tuple[int, list[S]]]:
    """Cut texts, or lists of token ids, into parts that cost at most `most`, or are one.

    Each comes with its first text's index.
    """
    each = len(prompt) + _TEXT_CHARACTERS
    first = size = 0
    for i, text in enumerate(texts):
        size += len(text) + each
        if size > most and i > first:
            yield first, texts[first:i]
            first, size = i, len(text) + each
    if first < len(texts):
        yield first, texts[first:]


def cost(texts: Sequence[Sized], prompt: str) -> int:
    """Units of work to tokenize texts: their characters, and what each text takes beside them.

    As much for lists of token ids, a unit an id.
    """
    return sum(map(len, texts)) + (len(prompt) + _TEXT_CHARACTERS) * len(texts)


def check_tokens(tokens: int, most: int) -> None:
    """RequestError where a request has more tokens than are accepted in one."""
    if tokens > most:
        raise RequestError(
            "too_many_tokens",
            f"input has more than {most} tokens; at most {most} are accepted in one request",
            "input",
        )
