"""Files -> model.onnx, weights.bin by a family of export/families.

Runs in a process of its own (export.steps). Today's transformers reads the configuration, which
resolves old key names and missing defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from embedserve.artifact import GRAPH, WEIGHTS
from embedserve.errors import Exit, StartupError
from export.families import static_embedding
from export.families.checkpoint import Checkpoint
from export.families.family import Built, Family
from export.families.graph_builder import GraphBuilder
from export.families.layers import Layers
from export.families.registry import FAMILIES
from export.files import refused
from export.libraries import quiet, versions
from export.steps import Json

LIBRARIES = ("transformers", "torch", "onnx")


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import transformers  # noqa: F401


def run(job: Json) -> Json:
    """Write out/model.onnx and weights.bin; return versions and the manifest's masked_up_to.

    The same files give the same bytes. StartupError (65) names a tensor or a key that is wrong,
    before anything is written. Without "out" in the job it only checks.
    """
    directory = Path(job["directory"])
    build = _builder(job["model_type"], directory)
    _check(build(GraphBuilder(None), True), directory, job)
    if "out" not in job:
        return {}
    out = Path(job["out"])
    with (out / WEIGHTS).open("wb") as weights:
        graph = GraphBuilder(weights)
        built = build(graph, False)
    graph.write(built.output, built.hidden_size, out / GRAPH)
    return {"versions": versions(LIBRARIES), "masked_up_to": built.masked_up_to}


def _builder(model_type: str, directory: Path) -> Callable[[GraphBuilder, bool], Built]:
    """Return what adds the nodes of the model in `directory`; True: from names and shapes only."""
    if model_type == static_embedding.KIND:
        return lambda graph, shapes_only: static_embedding.build(directory, graph)
    family, config = FAMILIES[model_type], _config(directory)
    return partial(_build, family, config, directory)


def _check(built: Built, directory: Path, job: Json) -> None:
    """Refuse a size that is not the pooling module's, and a limit past the learned positions."""
    if built.hidden_size != job["hidden_size"]:
        raise refused(
            f"{directory / 'config.json'}: token embeddings have {built.hidden_size} components; "
            f"the pooling module's config.json says {job['hidden_size']}"
        )
    if built.positions is not None and job["max_tokens"] > built.positions:
        raise refused(
            f"{directory}: the limit is {job['max_tokens']} tokens, but the model has positions "
            f"for {built.positions}; set max_tokens = {built.positions} in models.toml"
        )


def _build(
    family: Family, config: Any, directory: Path, graph: GraphBuilder, shapes_only: bool
) -> Built:
    weights = Checkpoint(directory, family.prefixes, family.ignored, shapes_only)
    built = family.build(config, Layers(graph, weights))
    weights.finish()
    return built


def _config(directory: Path) -> Any:
    with quiet():
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever its validation raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StartupError(
                f"{directory / 'config.json'}: transformers cannot read it: {reason}",
                Exit.DATAERR,
            ) from error
