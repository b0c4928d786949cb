"""OnnxBackend on providers whose memory is not this process's own, faked by the CPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import artifact
from embedserve.arrays.batch import Batch, pad
from embedserve.errors import DeviceLostError, Exit, StartupError
from embedserve.model import providers
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.providers import PROVIDERS
from embedserve.model.stop import Stop
from tests import tiny

TEXTS = ("a", "a b c", "d d")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """A provider that keeps token embeddings: the CPU's, under another name."""
    row = replace(
        PROVIDERS["cuda"], name="CPUExecutionProvider", options={}, device="cpu", check=lambda: None
    )
    monkeypatch.setitem(PROVIDERS, "device", row)
    return "device"


def batch() -> Batch:
    ids = [np.array(encoding.ids) for encoding in tiny.tokenizer().encode_batch(list(TEXTS))]
    return pad(ids, 0, "right")


@pytest.mark.parametrize("modes", [("mean",), ("cls", "max", "lasttoken")], ids="+".join)
def test_pooled_on_the_device(device: str, tmp_path: Path, modes: tuple[str, ...]) -> None:
    """The same rows as pooled by numpy, to the last bits of a sum."""
    manifest = tiny.write(tmp_path / "m", pooling=modes, dimension=len(modes) * tiny.HIDDEN)
    own = OnnxBackend(tmp_path / "m", manifest).embed(batch())
    rows = OnnxBackend(tmp_path / "m", manifest, device).embed(batch())
    np.testing.assert_allclose(rows, own, atol=1e-6)
    if modes == ("mean",):
        np.testing.assert_allclose(rows, np.stack([tiny.expected(t) for t in TEXTS]), atol=1e-6)


def test_a_pass_on_the_device_can_be_stopped(device: str, tmp_path: Path) -> None:
    """As on the CPU: it raises, and the next one runs."""
    ours = OnnxBackend(tmp_path / "m", tiny.write(tmp_path / "m"), device)
    stop = Stop()
    stop.ask()
    with pytest.raises(Exception, match="terminate"):
        ours.embed(batch(), stop=stop)
    assert ours.embed(batch()).shape == (len(TEXTS), tiny.HIDDEN)


@pytest.mark.parametrize(
    ("failing", "said", "raised"),
    [
        ("every", "CUBLAS failure 13: the function failed to launch", DeviceLostError),
        ("every", "CUBLAS failure 3: the resource allocation failed", MemoryError),
        ("large", "CUBLAS failure 13: the function failed to launch", RuntimeError),
    ],
)
def test_a_device_that_fails(
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    said: str,
    raised: type[Exception],
) -> None:
    """It is lost when it fails at one token, too; out of memory it is asked again later."""
    ours = OnnxBackend(tmp_path / "m", tiny.write(tmp_path / "m"), device)
    pooled = ours._pooled_on_device

    def fail(session: Any, feed: Any, mask: Any, options: Any) -> Any:
        if failing == "every" or mask.size > 1:
            raise RuntimeError(said)
        return pooled(session, feed, mask, options)

    monkeypatch.setattr(ours, "_pooled_on_device", fail)
    with pytest.raises(raised, match="failure") as caught:
        ours.embed(batch())
    assert type(caught.value) is raised


def test_no_pooling_graph(device: str, tmp_path: Path) -> None:
    """An artifact without one is refused where it is needed, with what to do, and only there."""
    tiny.write(tmp_path / "m")
    (tmp_path / "m" / artifact.POOLING_GRAPH).unlink()
    (tmp_path / "m" / artifact.MANIFEST).unlink()
    manifest = artifact.write(tmp_path / "m", tiny.manifest())
    OnnxBackend(tmp_path / "m", manifest)
    with pytest.raises(StartupError, match=r"pooling\.onnx.*export the model again") as refused:
        OnnxBackend(tmp_path / "m", manifest, device)
    assert refused.value.status == Exit.DATAERR


def test_what_a_provider_serves_best() -> None:
    """A GPU gets passes that fill it and two lanes; the CPU small passes, and a lane a core."""
    assert (PROVIDERS["cpu"].lanes, PROVIDERS["cpu"].tokens_per_pass) == (0, 256)
    assert (PROVIDERS["cuda"].lanes, PROVIDERS["cuda"].tokens_per_pass) == (2, 16_384)
    assert providers.PROVIDERS["cpu"].device is None
