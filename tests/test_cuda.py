"""What keeps CUDA from serving is said in one line before anything starts; the driver is faked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnxruntime
import pytest

from embedserve.errors import Exit, StartupError
from embedserve.model import cuda, onnx_backend
from embedserve.model.providers import PROVIDERS
from tests import tiny


@dataclass
class Driver:
    """The three calls that are made of libcuda, as a driver of `version` with one GPU has them."""

    version: int = 13_000
    status: int = 0
    text: bytes = b"no CUDA-capable device is detected"
    calls: list[str] = field(default_factory=list)

    def cuDriverGetVersion(self, version: object) -> int:  # noqa: N802  # the driver's name
        self.calls.append("version")
        version._obj.value = self.version  # type: ignore[attr-defined]
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802  # the driver's name
        assert flags == 0
        self.calls.append("init")
        return self.status

    def cuGetErrorString(self, status: int, text: object) -> int:  # noqa: N802  # the driver's name
        assert status == self.status
        text._obj.value = self.text  # type: ignore[attr-defined]
        return 0


@dataclass
class Machine:
    """Which libraries the loader finds."""

    driver: Driver | None = field(default_factory=Driver)
    missing: tuple[str, ...] = ()

    def load(self, name: str) -> object:
        if name in self.missing or (name == cuda.DRIVER and self.driver is None):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self.driver if name == cuda.DRIVER else object()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What onnxruntime's preload_dlls prints; it is for CUDA 13, whatever build is here."""
    lines: list[str] = []

    def preload_dlls(directory: str) -> None:
        assert directory == ""  # NVIDIA's wheels first, and never torch's folder
        for line in lines:
            print(line)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.delenv(cuda.VISIBLE, raising=False)
    return lines


def refusal(machine: Machine) -> str:
    with pytest.raises(StartupError) as refused:
        cuda.check(machine.load)
    assert refused.value.status == Exit.UNAVAILABLE
    line = str(refused.value)
    assert line.startswith("provider cuda: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("version", [13_000, 13_020, 14_000])
def test_all_is_there(said: list[str], version: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said, and nothing of what the library prints reaches the terminal."""
    said.append("Skip loading CUDA and cuDNN DLLs since torch is imported.")
    cuda.check(Machine(Driver(version)).load)
    assert capsys.readouterr().out == ""


def test_no_driver(said: list[str]) -> None:
    """A container without its GPUs is the usual cause."""
    line = refusal(Machine(driver=None))
    assert "no NVIDIA driver" in line
    assert "--gpus all" in line


def test_a_driver_that_is_too_old(said: list[str]) -> None:
    """Both versions are named; the driver is asked for nothing that it may not know."""
    driver = Driver(version=12_040)
    assert "supports CUDA 12.4 and this build of onnxruntime needs 13.0" in refusal(Machine(driver))
    assert driver.calls == ["version"]


def test_no_gpu_is_visible(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is the cause, and is named with its value."""
    monkeypatch.setenv(cuda.VISIBLE, "")
    assert "CUDA_VISIBLE_DEVICES= leaves no GPU" in refusal(Machine(Driver(status=100)))
    monkeypatch.setenv(cuda.VISIBLE, "7")
    assert "CUDA_VISIBLE_DEVICES=7 leaves no GPU" in refusal(Machine(Driver(status=100)))


@pytest.mark.parametrize(
    ("status", "text"),
    [(100, "no CUDA-capable device is detected"), (803, "system has unsupported driver")],
)
def test_a_driver_without_a_gpu(said: list[str], status: int, text: str) -> None:
    """The driver's own number and words."""
    line = refusal(Machine(Driver(status=status, text=text.encode())))
    assert f"cuInit: {status}, {text}" in line


def test_no_cuda_libraries(said: list[str]) -> None:
    """onnxruntime prints what it cannot load, and goes on: the first is the reason."""
    said += [
        "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file",
        "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file",
        "Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.",
    ]
    line = refusal(Machine())
    assert "libcublasLt.so.13" in line
    assert "serve-cuda.txt" in line


def test_no_cudnn(said: list[str]) -> None:
    """onnxruntime does not say so: it would fail at the first operator that needs it."""
    line = refusal(Machine(missing=(cuda.CUDNN,)))
    assert "libcudnn.so.9" in line
    assert "serve-cuda.txt" in line


def test_a_device_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines become one, and the status is that of a device that cannot be had."""
    error = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION\n/onnxruntime_src/cuda_call.cc:146 CudaCall\n"
        "CUDA failure 2: out of memory ; GPU=0 ; file=/onnxruntime_src/cuda_execution_provider.cc"
    )

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    manifest = tiny.write(tmp_path / "m")
    with pytest.raises(StartupError) as refused:
        onnx_backend.OnnxBackend(tmp_path / "m", manifest)
    assert refused.value.status == Exit.UNAVAILABLE
    assert "not enough memory to load it" in str(refused.value)
    assert str(refused.value).endswith("CUDA failure 2: out of memory")
    assert "\n" not in str(refused.value)


def test_a_provider_is_checked_before_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row names the check; doctor and every session make it."""
    assert PROVIDERS["cuda"].check is cuda.check

    def check() -> None:
        raise StartupError("provider cuda: no NVIDIA driver", Exit.UNAVAILABLE)

    with pytest.raises(StartupError, match="no NVIDIA driver"):
        onnx_backend.check_available(replace(PROVIDERS["cpu"], check=check))
