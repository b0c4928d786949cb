"""The doctor's report: as text for people, as JSON with stable keys."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from embedserve import __version__
from embedserve.artifact import FLOORS
from embedserve.diagnose.examination import SETTINGS, ArtifactState, Report
from embedserve.diagnose.footprint import Footprint
from embedserve.escapes import escaped
from embedserve.model.onnx_backend import VERSION
from embedserve.model.providers import PROVIDERS
from embedserve.system.host import Host, Known

_MIB, _GIB = 2**20, 2**30
_FACTS = ("fingerprint", "precision", "dimension", "max_tokens", "parity", "quality")

Row = tuple[str, str, str]  # label, value, origin


def as_json(report: Report) -> str:
    """Return one JSON object. A value with an origin is an object of both, or null if unknown."""
    asked = PROVIDERS[report.settings.provider].name
    found = {
        "version": __version__,
        "python": platform.python_version(),
        "onnxruntime": {"version": VERSION, "providers": report.providers},
        "provider": {"name": asked, "available": asked in report.providers},
        "host": {name: _pair(known) for name, known in asdict(report.host).items()},
        "settings": {name: _pair(report.setting(name)) for name in SETTINGS},
        "memory_bound": _bound(report.footprint),
        "models": [_model(model) for model in report.models],
        "advice": report.advice(),
        "problems": [str(problem) for problem in report.problems],
        "status": int(report.status),
    }
    # JSON does not escape DEL.
    return json.dumps(found, indent=2).replace("\x7f", "\\u007f")


def _pair(known: Known[Any] | None) -> dict[str, Any] | None:
    return None if known is None else known._asdict()


def _model(model: ArtifactState) -> dict[str, Any]:
    known = asdict(model.manifest) if model.manifest else {}
    return {
        "name": model.name,
        "artifact": str(model.directory),
        "present": model.present,
        "intact": model.problem is None,
        "problem": str(model.problem) if model.problem else None,
        "bytes": model.bytes,
        **{fact: known.get(fact) for fact in _FACTS},
    }


def _bound(footprint: Footprint | None) -> dict[str, int] | None:
    if footprint is None:
        return None
    parts = {name.replace(" ", "_"): value for name, value in footprint.parts.items()}
    return {"loaded": footprint.loaded, **parts, "most": footprint.most}


def as_text(report: Report) -> str:
    """Return sections of aligned rows, then advice, then whether a server could start."""
    lines = [
        f"embedserve {__version__}, Python {platform.python_version()}, "
        f"onnxruntime {VERSION} ({', '.join(report.providers)})"
    ]
    lines += _section("host", list(_host_rows(report.host)))
    settings = [(name, *report.setting(name)) for name in SETTINGS]
    lines += _section("settings", [(name, _shown(value), where) for name, value, where in settings])
    if report.footprint:
        whose = "a server" if report.settings.processes == 1 else "each process"
        lines += _section(f"memory of {whose}", list(_memory_rows(report.footprint)))
    for model in report.models:
        lines += _section(f"model {model.name}", list(_model_rows(model)))
    lines += ["", "advice", *(f"  {line}" for line in report.advice() or ["none"]), ""]
    verdict = [f"cannot serve: {problem}" for problem in report.problems]
    ready = ["can serve, unless loading a model fails: check with embedserve verify"]
    return "\n".join(map(escaped, [*lines, *(verdict or ready)]))


def _shown(value: object) -> str:
    """Return a setting's value as written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _section(title: str, rows: Sequence[Row]) -> list[str]:
    first = max(14, *(len(label) for label, _, _ in rows))
    width = max((len(value) for _, value, where in rows if where), default=0)
    shown = [
        f"  {label:{first}}  {value:{width}}  {where}".rstrip() for label, value, where in rows
    ]
    return ["", title, *shown]


def _host_rows(host: Host) -> Iterator[Row]:
    yield "processor", f"{host.cpu.value}, {host.architecture.value}", host.cpu.origin
    if host.instructions:
        yield "instructions", " ".join(host.instructions.value), ""
    yield "cores", f"{host.affinity.value}", host.affinity.origin
    if host.quota:
        yield "quota", f"{host.quota.value:g} cores", host.quota.origin
    if host.memory:
        yield "memory", f"{host.memory.value / _GIB:.1f} GiB", host.memory.origin
    if host.descriptors:
        yield "descriptors", f"{host.descriptors.value}", host.descriptors.origin


def _memory_rows(footprint: Footprint) -> Iterator[Row]:
    for label, value in {"loaded": footprint.loaded, **footprint.parts}.items():
        yield label, f"{value / 1e6:.0f} MB", ""
    yield "at most", f"{footprint.most / 1e6:.0f} MB", ""


def _model_rows(model: ArtifactState) -> Iterator[Row]:
    state = "intact" if model.problem is None else "refused" if model.present else "missing"
    yield "artifact", f"{state}, {model.directory}", ""
    if model.manifest is None:
        return
    manifest, parity = model.manifest, model.manifest.parity
    yield "files", f"{len(manifest.files)}, {model.bytes / _MIB:.1f} MiB in all", ""
    yield "fingerprint", manifest.fingerprint, ""
    yield "vectors", f"dimension {manifest.dimension}, {manifest.precision}", ""
    yield "max_tokens", f"{manifest.max_tokens}", ""
    what = "1 - cosine" if manifest.precision in FLOORS else "difference"
    within = parity and (
        f"{what} at most {parity.max_abs_difference:.1e} from {parity.reference} on "
        f"{parity.texts} texts ({parity.tolerance:.0e} is accepted)"
    )
    yield "parity", within or "no certificate", ""
    if quality := manifest.quality:
        found = (
            f"{quality.agreement_at_10:.3f} of float32's ten nearest passages, least cosine "
            f"{quality.min_cosine:.4f} ({quality.floor:g} is accepted)"
        )
        yield "quality", found, ""
