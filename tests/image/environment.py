"""What the Makefile says: which image, run with what, and where its artifacts are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
IMAGE = os.environ["IMAGE"]
AGAIN = f"{IMAGE}-again"  # the same, built once more
ARTIFACTS = Path(os.environ.get("ARTIFACTS") or ROOT / "artifacts")
# For the export tool's run: what it needs to reach the hub or the package index.
RUN_FLAGS = os.environ.get("RUN_FLAGS", "").split()
