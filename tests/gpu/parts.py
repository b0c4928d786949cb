"""Make build/gpu/part-NN, what the run needs and the GPU's machine lacks (in .venv-export).

python -m tests.gpu.parts [FOLDER]; a part is at most PART bytes. Needs artifacts/ and pip.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from embedserve.config import models_toml
from embedserve.config.models_toml import ModelSpec
from export import build, sources
from export.steps import Nurseries
from tests.export import checkpoints
from tests.gpu import families
from tests.gpu.place import DECODER, FP16, FP32, NOMIC, ROOT

PART = 56_000_000
MODEL = "all-MiniLM-L6-v2"
LOCK = ROOT / "requirements" / "serve-cuda.txt"
# What that machine's image has not; the rest of the lock is there in its own versions.
WHEELS = ("onnxruntime-gpu", "starlette", "uvicorn", "httptools", "orjson", "pybase64")
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")
# Vocabulary, hidden size, layers, heads, inner size: the form of nomic_bert, and quick to make.
SMALL_NOMIC = (checkpoints.VOCABULARY, 256, 4, 4, 512)
NOMIC_TOKENS = 8192


def main(folder: str = "build/gpu") -> None:
    """Remove old parts and make new ones."""
    made = Path(folder)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=made) as scratch:
        tree = Path(scratch)
        download(tree / "wheels")
        models(tree)
        archive = made / "archive.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(tree.iterdir()):
                tar.add(path, path.name)
    sums = {archive.name: digest(archive)} | dict(split(archive))
    archive.unlink()
    lines = [f"{value}  {name}\n" for name, value in sums.items()]
    (made / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    print(f"{len(sums) - 1} parts in {made}, at most {PART / 1e6:.0f} MB each")


def download(folder: Path) -> None:
    """Fetch WHEELS at the lock's versions and with its digests, for PYTHON on Linux x86-64."""
    folder.mkdir()
    entries = re.split(r"\n(?=[a-z])", LOCK.read_text(encoding="utf-8"))
    wanted = [e for e in entries if e.partition("==")[0] in WHEELS]
    if len(wanted) != len(WHEELS):
        raise SystemExit(f"{LOCK}: has {len(wanted)} of {', '.join(WHEELS)}")
    lock = folder.parent / "lock.txt"
    lock.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    platforms = [flag for name in PLATFORMS for flag in ("--platform", f"{name}_x86_64")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    where = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    subprocess.run([*pip, *where, *platforms, "-r", str(lock), "-d", str(folder)], check=True)
    lock.unlink()


def models(tree: Path) -> None:
    """Export all-MiniLM-L6-v2 in both precisions, and small models; keep the checkpoint."""
    spec = models_toml.read(ROOT / "models.toml").models[MODEL]
    specs = [replace(spec, name=FP32), replace(spec, name=FP16, precision="fp16")]
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch, Nurseries() as nurseries:
        source = sources.open(spec, None, Path(scratch), print)
        unused = shutil.ignore_patterns("onnx", "openvino", "*.bin", "*.h5", "*.ot")
        shutil.copytree(source.directory, tree / "checkpoint", ignore=unused)
        nomic = checkpoints.nomic_bert(Path(scratch) / "nomic", NOMIC_TOKENS, SMALL_NOMIC)
        given = [(one, tree / "checkpoint") for one in specs]
        for one, directory in [*given, (ModelSpec(name=NOMIC), nomic)]:
            build.export(one, tree / "artifacts", directory, True, print, nurseries)
        families.make(tree / "artifacts", nurseries)
    shutil.rmtree(tree / "artifacts" / ".export", ignore_errors=True)
    halve(tree / "checkpoint" / "model.safetensors")
    tables = [f"[models.{FP32}]\n", f'[models.{FP16}]\nprecision = "fp16"\n', f"[models.{NOMIC}]\n"]
    tables += [f"[models.{DECODER}]\n"]
    (tree / "models.toml").write_text("\n".join(tables), encoding="utf-8")


def halve(path: Path) -> None:
    """Write float32 weights as float16: the rival runs in that precision, whatever it reads."""
    weights = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def split(path: Path) -> Iterator[tuple[str, str]]:
    """Cut a file into parts beside it; their names and digests."""
    with path.open("rb") as file:
        for number, data in enumerate(iter(lambda: file.read(PART), b""), 1):
            part = path.with_name(f"part-{number:02}")
            part.write_bytes(data)
            yield part.name, hashlib.sha256(data).hexdigest()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
