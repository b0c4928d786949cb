"""The machine and the versions that a run's figures belong to."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping

from embedserve import host
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
