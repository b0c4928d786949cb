"""Models to serve: which of models.toml, each loaded from its artifact and proven."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from embedserve import artifact
from embedserve.artifact import Golden
from embedserve.config.models_toml import Alias, ModelSpec
from embedserve.errors import Exit, RequestError, StartupError
from embedserve.model import providers
from embedserve.model.model import Model
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.providers import PROVIDERS
from embedserve.model.registry import ModelRegistry
from embedserve.model.tokenizer import Tokenizer
from embedserve.system import process

log = logging.getLogger(__name__)


def load(
    specs: Iterable[ModelSpec], aliases: Iterable[Alias], artifacts: Path, provider: str, cores: int
) -> ModelRegistry:
    """Load each model's artifact, check digests and golden vectors. StartupError names the file."""
    threads = providers.tokenizing(PROVIDERS[provider], cores)
    models = [load_model(s, artifacts / s.name, provider, cores, threads)[0] for s in specs]
    return ModelRegistry(models, aliases)


def load_model(
    spec: ModelSpec, directory: Path, provider: str, cores: int = 1, tokenizing: int = 1
) -> tuple[Model, float]:
    """Load one artifact and prove it on the provider that will serve it.

    A lone text may use `cores`; `tokenizing` threads share a batch of texts. Returns the model and
    the largest difference from its golden vectors.
    """
    start = time.perf_counter()
    manifest = artifact.read(directory)
    _check_precision(manifest.precision, provider, directory)
    artifact.check_small_files(directory, manifest)
    process.tokenize_with(tokenizing)
    with ThreadPoolExecutor(2) as threads:  # what takes longest, side by side: 75 of 400 ms
        weights = threads.submit(artifact.check_weights, directory, manifest)
        opening = threads.submit(OnnxBackend, directory, manifest, provider, cores)
        try:
            tokenizer = Tokenizer(directory, manifest, tokenizing)
            tokenizer.check_vocabulary()
            backend = opening.result()
        finally:
            weights.result()  # what is wrong with a file is said first
        model = Model(spec, manifest, tokenizer, backend)
    loaded = time.perf_counter()
    golden = artifact.read_golden(directory)
    difference, rate = check_golden(model, golden, directory)
    model.encoder = replace(model.encoder, rate=rate)
    log.info(
        "model %s: loaded in %.2f s, golden vectors within %.1e in %.2f s, fingerprint %.12s",
        spec.name,
        loaded - start,
        difference,
        time.perf_counter() - loaded,
        manifest.fingerprint,
    )
    return model, difference


def _check_precision(precision: str, provider: str, directory: Path) -> None:
    accepted = PROVIDERS[provider].precisions
    if precision not in accepted:
        raise StartupError(
            f'{directory}: has precision "{precision}", which provider {provider} does not run; it '
            f"runs {', '.join(accepted)}",
            Exit.CONFIG,
        )


def check_golden(model: Model, golden: Golden, directory: Path) -> tuple[float, float]:
    """Embed the golden texts; StartupError when a vector differs by more than the tolerance.

    Returns the largest difference, and the rate of one lane in cost units a second.
    """
    if golden.vectors.shape[1] != model.manifest.dimension:
        raise StartupError(
            f"{directory / artifact.GOLDEN}: has vectors of {golden.vectors.shape[1]}, the "
            f"manifest's dimension is {model.manifest.dimension}"
        )
    try:
        return _compared(model, golden, directory)
    except RequestError as error:  # the tokenizer's, for a text that it has no token of
        raise StartupError(
            f"{directory / artifact.GOLDEN}: cannot be embedded: {error.message}"
        ) from error
    except (StartupError, MemoryError):
        raise
    except Exception as error:  # whatever a pass raises
        raise StartupError(f"{directory / artifact.GOLDEN}: cannot be embedded: {error}") from error


def _compared(model: Model, golden: Golden, directory: Path) -> tuple[float, float]:
    """Embed the golden texts and compare; see check_golden."""
    ids = model.tokenizer.encode(golden.texts).sequences
    for i, expected in enumerate(golden.token_ids):
        if ids[i].tolist() != list(expected):
            raise StartupError(
                f"{directory / artifact.GOLDEN}: this tokenizer gives other token ids than "
                f"sentence-transformers for text {i}; export again with this version of tokenizers"
            )
    encoder = model.encoder
    start = time.perf_counter()
    rows = [encoder.run([row])[0] for row in ids]
    rate = sum(encoder.shape.cost(len(row)) for row in ids) / (time.perf_counter() - start)
    # The session for lone texts computes the same bits: once proves it, and warms it up.
    rows.append(encoder.run(ids[:1], alone=True)[0])
    vectors = np.concatenate([golden.vectors, golden.vectors[:1]])
    precision = model.manifest.precision
    difference = artifact.deviation(np.stack(rows), vectors, precision)
    tolerance = artifact.TOLERANCES[precision]
    if not difference <= tolerance:  # a NaN is no pass
        raise StartupError(
            f"{directory}: golden vectors differ by {difference:.1e} on {model.provider}, at most "
            f"{tolerance:.0e} is accepted; export again, or use another provider"
        )
    return difference, rate


def choose(
    models: Mapping[str, ModelSpec], names: Iterable[str], artifacts: Path, skip_missing: bool
) -> list[ModelSpec]:
    """Return the models to serve: those named, else all; or all that have an artifact.

    An optional model that has none is left out, unless it is named.
    """
    names = list(names)
    for name in names:
        if name not in models:
            raise StartupError(
                f"--model {name}: not in models.toml; one of {', '.join(models)}", Exit.USAGE
            )
    chosen = [spec for name, spec in models.items() if not names or name in names]
    present = [s for s in chosen if artifact.exists(artifacts / s.name)]
    missing = [s for s in chosen if s not in present]
    required = [s for s in missing if names or not s.optional]
    if not present or (required and (names or not skip_missing)):
        name = (required or missing)[0].name
        raise StartupError(
            f"{artifacts / name / artifact.MANIFEST}: no such file; make it with "
            f"`python -m export {name}`, or serve fewer models with --model NAME or "
            "--skip-missing",
            Exit.NOINPUT,
        )
    for spec in required:
        log.warning("model %s: not served, it has no artifact in %s", spec.name, artifacts)
    return present
