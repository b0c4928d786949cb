"""A real server of the real model, for real clients. Run with --confcutdir=tests/clients."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODEL = "all-MiniLM-L6-v2"
KEY = "sk-clients-0123456789"
# The published answer for two words, first three components.
KNOWN = {
    "iPhone": (-0.02878604456782341, 0.024760600179433823, 0.06652576476335526),
    "Samsung": (-0.13341815769672394, 0.049686793237924576, 0.043825067579746246),
}


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that asks for KEY."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [str(ROOT / ".venv/bin/embedserve"), "serve", "--port", "0", "--model", MODEL]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=output,
            text=True,
            env={"PATH": os.environ["PATH"], "EMBEDSERVE_API_KEYS": KEY},
        )
        assert process.stderr is not None
        # Access lines of a few dozen requests fit into the pipe's buffer: nobody has to read on.
        found = next(filter(None, (re.search(r"http://\S+", s) for s in process.stderr)), None)
        assert found is not None, process.wait()
        yield found[0]
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()
