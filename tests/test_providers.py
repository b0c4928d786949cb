"""Lanes and tokens a pass: one rule, kept by serving, by embed and by embed on Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedserve.bulk import command
from embedserve.bulk.pipeline import How
from embedserve.bulk.ray_cluster import Embed, EmbedTask, versions
from embedserve.bulk.shipping import ByPath
from embedserve.config.models_toml import ModelSpec
from embedserve.config.settings import Settings
from embedserve.model import providers
from embedserve.model.providers import PROVIDERS
from embedserve.system import host, process
from tests import tiny

CORES = 3


@pytest.fixture(autouse=True)
def cuda_by_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider with a device of its own, faked by the CPU's; a process that is not prepared."""
    cpu = PROVIDERS["cpu"].name
    row = replace(PROVIDERS["cuda"], name=cpu, options={}, device="cpu", check=lambda: None)
    monkeypatch.setitem(PROVIDERS, "cuda", row)
    monkeypatch.setattr(process, "prepare", lambda: None)
    monkeypatch.setattr(process, "tokenize_with", lambda threads: None)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 1), (4, 1), (16, 13)])
def test_tokenizing(cores: int, expected: int) -> None:
    """Beside a GPU's two lanes and the loop, what is free; beside lanes on the cores, one."""
    assert providers.tokenizing(PROVIDERS["cuda"], cores) == expected
    assert providers.tokenizing(PROVIDERS["cpu"], cores) == 1


def test_indexing_tokenizes_on_free_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As serving does; on the CPU every core has a lane."""
    tiny.write(tmp_path / "m")
    monkeypatch.setattr(host, "read", lambda: SimpleNamespace(cores=SimpleNamespace(value=16)))
    asked: list[int] = []
    monkeypatch.setattr(process, "tokenize_with", asked.append)
    for provider in ("cuda", "cpu"):
        settings, how = Settings(provider=provider, lanes=1), How("", "end", tiny.HIDDEN)
        here = command._local(ModelSpec("m"), tmp_path / "m", settings, how, None, None)()  # type: ignore[arg-type]
        here._pipeline.close()  # type: ignore[attr-defined]
    assert asked == [13, 1]


@pytest.mark.parametrize(
    ("provider", "lanes", "expected"),
    [("cpu", 0, CORES), ("cpu", 5, 5), ("cuda", 0, 2), ("cuda", 5, 5)],
)
def test_lanes(provider: str, lanes: int, expected: int, tmp_path: Path) -> None:
    """The setting goes before what the provider likes, and that before the cores; everywhere."""
    settings = Settings(provider=provider, lanes=lanes)
    assert providers.lanes(settings, CORES) == expected
    manifest = tiny.write(tmp_path / "m")
    how, spec = How("", "end", tiny.HIDDEN), ModelSpec("m")
    on_ray = Embed(
        EmbedTask(spec, manifest.fingerprint, how, None, settings),  # type: ignore[arg-type]
        ByPath(tmp_path / "m"),
        # What Ray gives the actor: the setting, else the node's cores.
        lanes or CORES,
        versions(),
    )
    here = command._local(spec, tmp_path / "m", settings, how, None, None)()  # type: ignore[arg-type]
    pipelines = here._pipeline, on_ray._pipeline  # type: ignore[attr-defined]
    own, there = (len(pipeline._threads) for pipeline in pipelines)
    for pipeline in pipelines:
        pipeline.close()
    assert there == expected
    assert own == (lanes or PROVIDERS[provider].lanes or host.read().cores.value)


@pytest.mark.parametrize(
    ("provider", "tokens", "expected"),
    [("cpu", 0, 256), ("cpu", 64, 64), ("cuda", 0, 16_384), ("cuda", 64, 64)],
)
def test_tokens_per_pass(provider: str, tokens: int, expected: int) -> None:
    """The setting, or what serves the provider best."""
    settings = Settings(provider=provider, tokens_per_pass=tokens)
    assert providers.tokens_per_pass(settings) == expected
