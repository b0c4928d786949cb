"""The machine and the versions that a run's figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from embedserve.system import host
from tests.bench.peers import ROOT

PACKAGES = {
    ".venv": ("onnxruntime", "tokenizers", "numpy", "starlette", "uvicorn"),
    ".venv-bench": (
        *("infinity-emb", "sentence-transformers", "torch", "transformers", "optimum"),
        *("optimum-onnx", "onnxruntime", "fastapi", "uvicorn"),
    ),
}


def facts() -> dict[str, object]:
    """Processor, cores this process may use, instruction sets, kernel."""
    found = host.read()
    instructions = found.instructions.value if found.instructions else ()
    return {
        "processor": found.cpu.value,
        "cores": found.cores.value,
        "instructions": list(instructions),
        "system": f"{platform.system()} {found.architecture.value}",
    }


def busy() -> float:
    """Processor seconds of everything that ran on this machine, and that others took of it."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def versions() -> Mapping[str, Mapping[str, str]]:
    """Packages of the environments that are there."""
    found = {}
    for environment, names in PACKAGES.items():
        python = ROOT / environment / "bin" / "python"
        if not python.exists():
            continue
        code = f"from importlib.metadata import version; [print(version(n)) for n in {names!r}]"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found[environment] = dict(zip(names, done.stdout.split(), strict=True))
    return {"python": {"python": platform.python_version()}, **found}
