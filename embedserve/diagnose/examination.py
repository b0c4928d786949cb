"""What this process may use, what it found, and what to improve; loads no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from embedserve import artifact
from embedserve.artifact import Manifest
from embedserve.config import models_toml
from embedserve.config.api_keys import Keys, take_from_environment
from embedserve.config.models_toml import Config
from embedserve.config.settings import Settings, merge, origin
from embedserve.diagnose.footprint import Footprint, estimate
from embedserve.errors import Exit, StartupError
from embedserve.http.listener import is_loopback
from embedserve.model import onnx_backend, providers
from embedserve.model.loading import choose
from embedserve.processes import parent
from embedserve.system import host
from embedserve.system.host import Host, Known

T = TypeVar("T")

_MIB = 2**20
# Memory beyond the artifacts' files. A server of all-MiniLM-L6-v2 takes 87 MB just after its
# start, 41 of them for repacked matrices. The rest is room for passes.
PROCESS_BYTES = 128 * _MIB
# What makes products of int8 faster than those of float32.
_VNNI = ("avx_vnni", "avx512_vnni", "amx_int8")
SETTINGS = tuple(f.name for f in fields(Settings))


@dataclass(frozen=True, slots=True)
class ArtifactState:
    """A model's artifact. `problem` is None if its files match its manifest."""

    name: str
    directory: Path
    manifest: Manifest | None
    problem: StartupError | None

    @property
    def present(self) -> bool:
        """Whether there is an artifact, intact or not."""
        return self.problem is None or self.problem.status != Exit.NOINPUT

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(f.bytes for f in self.manifest.files.values()) if self.manifest else 0


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `origins` maps each setting to where its value was set.

    `has_keys`: clients need an API key. `takes_ids`: a model accepts token ids.
    """

    host: Host
    settings: Settings
    origins: Mapping[str, str]
    providers: tuple[str, ...]
    models: tuple[ArtifactState, ...]
    problems: tuple[StartupError, ...]
    has_keys: bool = False
    takes_ids: bool = False

    @property
    def status(self) -> int:
        """0 when a server could start, else the exit status of the first problem."""
        return self.problems[0].status if self.problems else 0

    def setting(self, name: str) -> Known[Any]:
        """Return a setting's value in force, and where it was set."""
        value, origin = getattr(self.settings, name), self.origins[name]
        if value or name not in ("lanes", "tokens_per_pass"):
            return Known(value, origin)
        cores, reason = self.host.cores
        if name == "tokens_per_pass":
            value = providers.tokens_per_pass(self.settings)
        else:
            value = providers.lanes(self.settings, cores)
            if not providers.PROVIDERS[self.settings.provider].lanes:
                return Known(value, f"{origin}: one per core, {reason}")
        return Known(value, f"{origin}: for {self.settings.provider}")

    @property
    def needed(self) -> int:
        """About how many bytes are resident once these models are loaded."""
        return PROCESS_BYTES + sum(model.bytes for model in self.models)

    @property
    def footprint(self) -> Footprint | None:
        """The memory bound of a process, as it prints it at start; None without a model."""
        manifests = [model.manifest for model in self.models if model.manifest]
        if not manifests:
            return None
        lanes, tokens = self.setting("lanes").value, self.setting("tokens_per_pass").value
        lanes = -(-lanes // self.settings.processes)  # the largest share
        return estimate(
            self.needed,
            manifests,
            lanes,
            tokens,
            self.settings,
            takes_ids=self.takes_ids,
            on_device=providers.PROVIDERS[self.settings.provider].device is not None,
        )

    def advice(self) -> list[str]:
        """What an operator should know or do; the least urgent last."""
        return [line for rule in _RULES for line in rule(self)]


def examine(paths: Mapping[str, Path], names: Sequence[str], flags: Mapping[str, str]) -> Report:
    """Read what a server reads at start, but load no model; collect the problems."""
    problems: list[StartupError] = []

    def attempt(function: Callable[[], T]) -> T | None:
        value, problem = _tried(function)
        problems.extend([problem] if problem else [])
        return value

    keys = attempt(take_from_environment) or []
    read = attempt(lambda: models_toml.read(paths["models"]))
    known = read or Config({}, {}, {})
    merged = attempt(lambda: merge(known, os.environ, flags, paths["models"]))
    settings = merged or Settings()
    key_file = Path(settings.api_keys_file) if settings.api_keys_file else None
    accepted = attempt(lambda: Keys(key_file, keys))
    artifacts = paths["artifacts"]
    if read:
        attempt(lambda: choose(known.models, names, artifacts, settings.skip_missing))
    models = [_model(artifacts / n) for n in known.models if not names or n in names]
    models = [m for m in models if m.present or names or not known.models[m.name].optional]
    # `choose` judges missing artifacts: some may be missing.
    problems += [m.problem for m in models if m.problem and m.present]
    attempt(lambda: parent.check(settings, host.read().cores))
    attempt(lambda: onnx_backend.check_available(providers.PROVIDERS[settings.provider]))
    if settings.tracing:
        from embedserve.api import tracing

        attempt(tracing.check)
    return Report(
        host=host.read(),
        settings=settings,
        origins={
            name: origin(name, known, os.environ, flags) if merged else "default"
            for name in SETTINGS
        },
        providers=onnx_backend.available(),
        models=tuple(models),
        problems=tuple(problems),
        has_keys=bool(accepted),
        takes_ids=any(known.models[model.name].accept_token_ids for model in models),
    )


def _tried(function: Callable[[], T]) -> tuple[T | None, StartupError | None]:
    try:
        return function(), None
    except StartupError as error:
        return None, error
    except OSError as error:  # a directory that this user may not read
        return None, StartupError(str(error))


def _model(directory: Path) -> ArtifactState:
    manifest, problem = _tried(lambda: artifact.read(directory))
    if manifest:
        _, problem = _tried(lambda: artifact.check_files(directory, manifest))
    return ArtifactState(directory.name, directory, manifest, problem)


def _missing(report: Report) -> Iterator[str]:
    for model in report.models:
        if not model.present:
            yield f"{model.name} has no artifact: python -m export {model.name}"


def _memory(report: Report) -> Iterator[str]:
    memory, most, count = report.host.memory, report.footprint, report.settings.processes
    needed = count * report.needed
    if memory and memory.value < needed:
        yield (
            f"memory is {memory.value // _MIB} MiB ({memory.origin}) and these models need about "
            f"{needed // _MIB}: raise the limit, or serve fewer with --model"
        )
    elif memory and most and count * most.most > memory.value:
        origin = memory.origin if count == 1 else f"{memory.origin}, for each of {count} processes"
        advice = most.advice(Known(memory.value // count, origin))
        each = "" if count == 1 else " in each process"
        yield f"memory may grow to {most.most / 1e6:.0f} MB with requests{each}; {advice}"


def _descriptors(report: Report) -> Iterator[str]:
    found, wanted = report.host.descriptors, report.settings.max_connections
    if found and found.value <= wanted:
        yield (
            f"{found.value} file descriptors ({found.origin}) are too few for max_connections = "
            f"{wanted}: raise the limit (ulimit -n, LimitNOFILE=), or lower max_connections"
        )


def _quota(report: Report) -> Iterator[str]:
    affinity, quota, cores = report.host.affinity, report.host.quota, report.host.cores
    if quota and quota.value < affinity.value:
        yield (
            f"the quota of {quota.value:g} cores ({quota.origin}) is below the {affinity.value} of "
            "the affinity: the kernel stops a process that exceeds it for the rest of each period"
        )
    if report.settings.lanes > cores.value:
        yield f"lanes = {report.settings.lanes} is more than the {cores.value} cores available"


def _instructions(report: Report) -> Iterator[str]:
    found, architecture = report.host.instructions, report.host.architecture.value
    if found and architecture == "x86_64" and "avx2" not in found.value:
        yield "this processor has no AVX2 (or it is hidden): expect a fraction of the throughput"


def _int8(report: Report) -> Iterator[str]:
    found, architecture = report.host.instructions, report.host.architecture.value
    names = [m.name for m in report.models if m.manifest and m.manifest.precision == "int8"]
    if not names or not found or architecture != "x86_64":
        return
    if not set(_VNNI) & set(found.value):
        yield (
            f"{', '.join(names)}: int8 is only about 20 % faster than fp32 on this processor, "
            f"which has none of {', '.join(_VNNI)}"
        )


def _public(report: Report) -> Iterator[str]:
    if not report.has_keys and not is_loopback(report.settings.host):
        yield (
            f"anyone who reaches {report.settings.host} can use this server: set api_keys_file or "
            "EMBEDSERVE_API_KEYS, or let only a proxy reach it"
        )


def _tuned(report: Report) -> Iterator[str]:
    are_defaults = all(report.origins[n] == "default" for n in ("lanes", "tokens_per_pass"))
    if are_defaults and report.settings.provider == "cpu":  # `tune` measures only the CPU
        yield "lanes and tokens_per_pass are defaults: `embedserve tune --write` measures them here"


_RULES = (_missing, _memory, _descriptors, _quota, _instructions, _int8, _public, _tuned)
