"""The GPU, the driver and the versions of all libraries."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import onnxruntime

from tests.gpu.place import Place
from tests.gpu.results import Results

GPU_FACTS = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,power.limit"
PACKAGES = (
    *("onnxruntime-gpu", "numpy", "tokenizers", "starlette", "uvicorn", "uvloop", "torch"),
    *("sentence-transformers", "transformers", "nvidia-cublas", "nvidia-cudnn-cu13"),
    *("nvidia-cuda-runtime", "nvidia-cufft", "nvidia-curand"),
)


def run(place: Place, results: Results, log: Path) -> None:
    """Read them."""
    results.add(gpu=nvidia_smi(GPU_FACTS), python=platform.python_version())
    results.add(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        onnxruntime=onnxruntime.__version__,
        built_for_cuda=getattr(onnxruntime, "cuda_version", ""),
        providers=onnxruntime.get_available_providers(),
    )
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    results.add(packages=versions)


def nvidia_smi(facts: str) -> str:
    """What nvidia-smi says of the first GPU, or why it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={facts}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"none: {error}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
