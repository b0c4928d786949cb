"""One pickled checkpoint -> safetensors, or digests of its tensors: run in a process of its own.

    python -I -c "..." write CHECKPOINT DESCRIPTOR
    python -I -c "..." describe CHECKPOINT

The process is confined before it opens the checkpoint. It prints one JSON object:
{"tensors": {name: [dtype, shape, sha256]}}, {"error": what is wrong with the checkpoint},
{"errno": why it could not be written}, or {"unavailable": why it could not be confined}.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import struct
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from export.confinement import UnavailableError, confine

# https://huggingface.co/docs/safetensors: names of the types that checkpoints have.
DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CPU_SECONDS = 1800
_SPARE = 512 << 20  # bytes beyond the checkpoint's: a copy of one tensor, and Python's own
_ZIP = b"PK\x03\x04"


class _RefusedError(Exception):
    """What is wrong with the checkpoint."""


class _WriteError(Exception):
    """The output could not be written: errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> int:
    """Do what the arguments say; return the exit status."""
    action, path = arguments[0], Path(arguments[1])
    answer: dict[str, Any]
    try:
        size = path.stat().st_size
        _warm_up()
        most = most_written(size)
        confine(path, most + _SPARE, _CPU_SECONDS, most + _SPARE)
        tensors = read(path, most)
        answer = {"tensors": {}}
        if action == "write":
            _write_to(int(arguments[2]), tensors)
        else:
            answer = {"tensors": {name: described(t) for name, t in tensors.items()}}
    except UnavailableError as error:
        answer = {"unavailable": str(error)}
    except _WriteError as error:
        answer = {"errno": error.number}
    except Exception as error:  # torch raises many kinds
        answer = {"error": reason(error)}
    print(json.dumps(answer), flush=True)
    return 0 if "tensors" in answer else 1


def most_written(size: int) -> int:
    """Return how many bytes of tensors a checkpoint of `size` bytes may have.

    Each of several tensors that share memory is written: twice the file is enough for tied weights.
    """
    return 2 * size + (1 << 20)


def _warm_up() -> None:
    """Import all that reading needs: later only the checkpoint can be opened."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(
            {"x": torch.ones(2, dtype=torch.bfloat16)}, buffer, _use_new_zipfile_serialization=new
        )
        buffer.seek(0)
        described(torch.load(buffer, map_location="cpu", weights_only=True)["x"])
    try:
        torch.load(io.BytesIO(b"no pickle"), weights_only=True)
    except Exception as error:
        reason(error)


def read(path: Path, most: int) -> dict[str, torch.Tensor]:
    """Load the tensors. Refuse what safetensors cannot hold, and more than `most` bytes."""
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(state, dict):
        raise _RefusedError(f"holds {type(state).__name__}; a table of tensors by name is accepted")
    total = 0
    for name, tensor in state.items():
        _check(name, tensor)
        total += tensor.numel() * tensor.element_size()
    if total > most:
        raise _RefusedError(f"declares tensors of {total} bytes; this file may have {most}")
    return {name: tensor.detach() for name, tensor in state.items()}


def _check(name: object, tensor: object) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise _RefusedError(f"has the key {name!r}; names of tensors are accepted")
    if not isinstance(tensor, torch.Tensor):
        raise _RefusedError(f"{name} is {type(tensor).__name__}; a tensor is accepted")
    odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta
    if odd or tensor.dtype not in DTYPES:
        raise _RefusedError(
            f"{name} is {tensor.layout} of {tensor.dtype}; plain numbers are accepted"
        )


def _write_to(descriptor: int, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        with open(descriptor, "wb") as out:  # not a path
            _write(tensors, out)
    except OSError as error:
        raise _WriteError(error.errno or errno.EIO) from error


def _write(tensors: Mapping[str, torch.Tensor], out: BinaryIO) -> None:
    """Write safetensors: the header's length, the header as JSON, all numbers without a gap."""
    # The widest types first, so that every tensor starts at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        out.write(_numbers(tensors[name]))
    out.flush()


def _numbers(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes: little-endian, in C order."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())


def described(tensor: torch.Tensor) -> list[Any]:
    """Return dtype, shape and the sha256 of the numbers."""
    digest = hashlib.sha256(_numbers(tensor)).hexdigest()
    return [DTYPES[tensor.dtype], list(tensor.shape), digest]


# Lines that torch adds around the one that says what it refused.
_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "(")


def reason(error: Exception) -> str:
    """Return what is wrong in one line."""
    if isinstance(error, _RefusedError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_ADVICE)]
    return f"{type(error).__name__}: {(said or ['no details'])[0]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
