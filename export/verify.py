"""The artifact, run by embedserve's own code, against sentence-transformers: the certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from embedserve import artifact, finishing
from embedserve.artifact import GRAPH, WEIGHTS, Golden, Manifest, Parity
from embedserve.backend import OnnxBackend
from embedserve.batching import pad
from embedserve.errors import Exit, StartupError
from embedserve.pooling import Floats, Ints
from embedserve.tokenization import Tokenizer
from export.facts import Facts
from export.graph import quiet, register
from export.modules import Finish
from export.texts import GOLDEN, TEXTS, past_limit

# What checking golden vectors may cost at start, in bytes of graph times tokens: 0.2 s
# where they were measured (all-MiniLM-L6-v2: 150 tokens in 0.07 s; nomic: 255 tokens in 0.85 s).
_GOLDEN_WORK = 28_000_000_000

# Tokens of a padded batch here, and the longest text in one: what a server puts together.
_BATCH_TOKENS = 4096
_BATCH_LONGEST = 512

# Tokens from which the reference uses all its threads: below it, on a busy machine, two threads
# wait for each other (78 texts of MiniLM: 22 s, with one thread 2.4 s).
_LONG = 1024

_LIBRARIES = (
    "sentence-transformers",
    "transformers",
    "torch",
    "tokenizers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "numpy",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A text with the prompt put before it."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the reference says about a case: ids (t,) and one vector per dimension (d,)."""

    ids: Ints
    vectors: tuple[Floats, ...]


def compare(stage: Path, source: Path, facts: Facts, manifest: Manifest) -> tuple[Parity, Golden]:
    """Compare the staged artifact with sentence-transformers on the model in `source`.

    Every text alone, and the shorter ones in mixed batches too; the reference runs each alone,
    because its left padding and weighted means depend on the batch. StartupError (70) names the
    text and the figures when ids differ, or vectors by more than artifact.TOLERANCES.
    """
    cases = list(_cases(manifest))
    answers = _answers(source, stage.parent, facts, manifest, cases)
    sequences = _same_ids(Tokenizer(stage, manifest), cases, answers)
    backend = OnnxBackend(stage, manifest)
    tolerance = artifact.TOLERANCES[manifest.precision]
    worst, cosine = 0.0, 1.0
    for members in _batches(sequences, manifest):
        batch = pad([sequences[i] for i in members], manifest.pad_token_id, manifest.padding_side)
        rows = backend.embed(batch)
        difference, least = _compare_rows(rows, members, cases, answers, tolerance)
        worst, cosine = max(worst, difference), min(cosine, least)
    size = sum((stage / name).stat().st_size for name in (GRAPH, WEIGHTS))
    return _parity(len(cases), worst, cosine, tolerance), _golden(
        cases, answers, _GOLDEN_WORK // size
    )


def _answers(
    source: Path, scratch: Path, facts: Facts, manifest: Manifest, cases: Sequence[Case]
) -> list[_Answer]:
    view = _view(source, scratch)
    try:
        reference = Reference(source, view, facts)
        reference.check_limit(facts.own_limit)
        reference.cut_at(manifest.max_tokens)
        return [reference.answer(case, manifest.matryoshka) for case in cases]
    except StartupError:
        raise
    except Exception as error:  # whatever a model's code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartupError(
            f"{source}: sentence-transformers cannot run it: {reason}", Exit.DATAERR
        ) from error


def _cases(manifest: Manifest) -> Iterator[Case]:
    """All texts as they are, one past the limit, and some with every prompt."""
    yield from map(Case, TEXTS)
    yield Case(past_limit(manifest.max_tokens))
    for prompt in dict.fromkeys(manifest.prompts.values()):
        if prompt:
            yield from (Case(text, prompt) for text in GOLDEN)
            if manifest.max_tokens <= _BATCH_LONGEST:  # a text of 8,192 tokens takes a minute
                yield Case(past_limit(manifest.max_tokens), prompt)


def _batches(sequences: Sequence[Ints], manifest: Manifest) -> Iterator[list[int]]:
    yield from ([i] for i in range(len(sequences)))
    longest = min(_BATCH_LONGEST, manifest.masked_up_to or _BATCH_LONGEST)
    rows: list[int] = []
    width = 0
    for i, ids in enumerate(sequences):
        if len(ids) > longest:
            continue
        if rows and (len(rows) + 1) * max(width, len(ids)) > _BATCH_TOKENS:
            yield rows
            rows, width = [], 0
        rows.append(i)
        width = max(width, len(ids))
    yield rows


def _same_ids(
    tokenizer: Tokenizer, cases: Sequence[Case], answers: Sequence[_Answer]
) -> list[Ints]:
    sequences = []
    for i, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        ids = tokenizer.encode([case.text], case.prompt).sequences[0]
        if not np.array_equal(ids, answer.ids):
            raise _failed(
                i,
                case,
                f"token ids {_shown(ids)}, sentence-transformers has {_shown(answer.ids)}",
            )
        sequences.append(ids)
    return sequences


def _compare_rows(
    rows: Floats,
    members: Sequence[int],
    cases: Sequence[Case],
    answers: Sequence[_Answer],
    tolerance: float,
) -> tuple[float, float]:
    """Return the largest difference and smallest cosine; StartupError past `tolerance`."""
    worst, cosine = 0.0, 1.0
    for row, i in zip(rows, members, strict=True):
        for expected in answers[i].vectors:
            full = len(expected) == len(row)
            found = row if full else finishing.truncate(row[None], len(expected))[0]
            difference = float(np.abs(found - expected).max())
            similarity = _cosine(found, expected)
            if not difference <= tolerance:  # a NaN is no pass
                raise _failed(
                    i,
                    cases[i],
                    f"{len(expected)} components differ by {difference:.1e} from "
                    f"sentence-transformers, cosine {similarity:.6f}, in a batch of "
                    f"{len(members)}; at most {tolerance:.0e} is accepted",
                )
            worst, cosine = max(worst, difference), min(cosine, similarity)
    return worst, cosine


def _cosine(a: Floats, b: Floats) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _failed(index: int, case: Case, what: str) -> StartupError:
    return StartupError(
        f"text {index} ({(case.prompt + case.text)[:40]!r}): {what}; nothing was published",
        Exit.SOFTWARE,
    )


def _shown(ids: Ints) -> str:
    return f"{ids[:8].tolist()}{'...' if len(ids) > 8 else ''} ({len(ids)})"


def _parity(texts: int, worst: float, cosine: float, tolerance: float) -> Parity:
    versions = {name: found for name in _LIBRARIES if (found := _version(name))}
    reference = f"sentence-transformers {versions['sentence-transformers']}"
    return Parity(reference, texts, worst, cosine, tolerance, versions)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _golden(cases: Sequence[Case], answers: Sequence[_Answer], most_tokens: int) -> Golden:
    """The golden texts, and one with each prompt written out: vectors of the reference.

    The longest are left out while there are more than `most_tokens`, down to two.
    """
    indexes = list(range(len(GOLDEN)))
    seen: set[str] = {""}
    for i, case in enumerate(cases):
        if case.prompt not in seen:
            seen.add(case.prompt)
            indexes.append(i)
    while len(indexes) > 2 and sum(len(answers[i].ids) for i in indexes) > most_tokens:
        indexes.remove(max(indexes, key=lambda i: len(answers[i].ids)))
    return Golden(
        texts=tuple(cases[i].prompt + cases[i].text for i in indexes),
        token_ids=tuple(tuple(answers[i].ids.tolist()) for i in indexes),
        vectors=np.stack([answers[i].vectors[0] for i in indexes]),
    )


class Reference:
    """sentence-transformers with one model, on the CPU, one text at a time.

    `view` is `source` as this version of sentence-transformers reads it.
    """

    def __init__(self, source: Path, view: Path, facts: Facts) -> None:
        register(facts.model_type)
        with quiet():
            import torch
            from sentence_transformers import SentenceTransformer

            self._threads = torch.get_num_threads()

            self._model: Any = SentenceTransformer(
                str(view),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
            )
        self._added = [step for step in facts.finishing if step.added]
        self._source = source

    def check_limit(self, own_limit: int) -> None:
        """Refuse a limit of the files that is not sentence-transformers' own."""
        if (found := self._model.max_seq_length) != own_limit:
            raise StartupError(
                f"{self._source}: sentence-transformers cuts at {found} tokens, and the files were "
                f"read as {own_limit}; nothing was published",
                Exit.SOFTWARE,
            )

    def cut_at(self, max_tokens: int) -> None:
        """Cut texts at `max_tokens`: the files' limit, or the lower one of models.toml."""
        self._model.max_seq_length = max_tokens

    def answer(self, case: Case, matryoshka: Sequence[int]) -> _Answer:
        """Ids and the final vector, then those of each Matryoshka dimension."""
        import torch

        with quiet():
            features = self._model.preprocess([case.text], prompt=case.prompt or None)
            torch.set_num_threads(1 if features["input_ids"].shape[1] <= _LONG else self._threads)
            # prompt="" and not None: None would bring in the model's default prompt.
            pooled = self._model.encode(
                case.text, prompt=case.prompt, convert_to_tensor=True, show_progress_bar=False
            )
        rows = pooled[None].to(torch.float32)
        vectors = [self._card(rows, None)]
        vectors += [self._card(rows, size) for size in matryoshka if size < rows.shape[1]]
        ids = features["input_ids"][0].numpy().astype(np.int64)
        return _Answer(ids, tuple(v[0].numpy() for v in vectors))

    def _card(self, rows: Any, size: int | None) -> Any:
        """What a model's card does after pooling: layer_norm, cut to `size`, normalize."""
        from torch.nn.functional import layer_norm, normalize

        def apply(rows: Any, step: Finish) -> Any:
            if step.kind == "layer_norm":
                return layer_norm(rows, normalized_shape=(rows.shape[1],), eps=step.eps)
            return normalize(rows, p=2, dim=1)

        for step in self._added:
            if step.kind != "normalize":
                rows = apply(rows, step)
        if size is not None:
            return normalize(rows[:, :size], p=2, dim=1)
        for step in self._added:
            if step.kind == "normalize":
                rows = apply(rows, step)
        return rows


# Where sentence-transformers 6 keeps what the version here has elsewhere.
_RENAMED = {
    f"sentence_transformers.base.modules.{path}": (
        "sentence_transformers.sentence_transformer.modules.normalize.Normalize"
    )
    for path in ("Normalize", "normalize.Normalize")
}


def _view(source: Path, scratch: Path) -> Path:
    """Return `source`, or in `scratch` links to it beside a modules.json that is known here."""
    modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
    known = [{**m, "type": _RENAMED.get(m["type"], m["type"])} for m in modules]
    if known == modules:
        return source
    view = scratch / "view"
    view.mkdir()
    for path in source.iterdir():
        if path.name != "modules.json":
            (view / path.name).symlink_to(path.resolve())
    (view / "modules.json").write_text(json.dumps(known), encoding="utf-8")
    return view
