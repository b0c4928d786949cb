"""Sentence embeddings over HTTP from ONNX artifacts, without PyTorch at serve time."""

import os

# Not asked of the installed package's metadata: that takes a twentieth of a cold start.
__version__ = "0.1.0"

# Read by onnxruntime at import, so here, before any module: without it, versions from 1.29 send
# telemetry on Linux.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
