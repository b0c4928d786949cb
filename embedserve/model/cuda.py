"""Whether this machine's driver, libraries and GPUs can run onnxruntime's CUDA provider."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Callable
from typing import Any

import onnxruntime

from embedserve.errors import Exit, StartupError

# The driver is a library of the host's; containers get it from NVIDIA's container toolkit.
DRIVER, CUDNN = "libcuda.so.1", "libcudnn.so.9"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# https://docs.nvidia.com/cuda/cuda-driver-api: CUresult
_NO_DEVICE = 100
_INSTALL = "install requirements/serve-cuda.txt, which has NVIDIA's libraries"
Load = Callable[[str], Any]


def check(load: Load = ctypes.CDLL) -> None:
    """Load CUDA's libraries; StartupError with one line that says what is missing.

    The libraries are NVIDIA's wheels beside onnxruntime, or those that the loader finds: the
    provider's own library names no path to them.
    """
    _check_driver(load)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot load
        onnxruntime.preload_dlls(directory="")
    missing = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    if missing:
        raise _refusal(f"{missing[0]}; {_INSTALL}")
    try:
        load(CUDNN)  # found by its name once it is loaded
    except OSError as error:
        raise _refusal(f"Failed to load {CUDNN}: {error}; {_INSTALL}") from error


def _check_driver(load: Load) -> None:
    try:
        driver = load(DRIVER)
    except OSError as error:
        raise _refusal(
            f"no NVIDIA driver ({error}); install it, or start the container with its GPUs "
            "(docker run --gpus all)"
        ) from error
    # First: an old driver may not know the calls that follow.
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    needed = int(_built_for().split(".")[0])
    if version.value // 1000 < needed:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise _refusal(
            f"the driver supports CUDA {found} and this build of onnxruntime needs {needed}.0; "
            "update the driver"
        )
    status = driver.cuInit(0)
    if status == _NO_DEVICE and VISIBLE in os.environ:
        raise _refusal(f"{VISIBLE}={os.environ[VISIBLE]} leaves no GPU to use")
    if status:
        raise _refusal(f"the driver finds no GPU it can use ({_named(driver, status)})")


def _named(driver: Any, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return f"cuInit: {status}, {(text.value or b'unknown error').decode()}"


def _built_for() -> str:
    """The version of CUDA that this build of onnxruntime needs, such as 13.0."""
    version = getattr(onnxruntime, "cuda_version", "")
    return str(version or "0")


def _refusal(reason: str) -> StartupError:
    return StartupError(f"provider cuda: {reason}", Exit.UNAVAILABLE)
