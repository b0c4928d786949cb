"""openai's client for JavaScript works unchanged."""

from __future__ import annotations

import json
import os
import subprocess

from tests import programs
from tests.clients.conftest import KEY, MODEL, ROOT
from tests.clients.test_python_clients import assert_known

DIRECTORY = ROOT / "tests" / "clients"


def test_openai_for_javascript(url: str) -> None:
    """Vectors, model list and error class."""
    programs.need("npm", package="npm")
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=DIRECTORY, check=True)
    done = subprocess.run(
        ["node", "openai_client.mjs", url, KEY, MODEL],
        cwd=DIRECTORY,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"},
    )
    answer = json.loads(done.stdout)
    assert_known(answer["vectors"])
    assert answer["models"] == [MODEL]
    assert answer["usage"]["prompt_tokens"] == 6
    expected = {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert answer["error"] == expected
