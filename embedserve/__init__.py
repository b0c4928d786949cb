"""Sentence embeddings over HTTP from ONNX artifacts, without PyTorch at serve time."""

import os

# A constant, because reading the package's metadata takes 5 % of a cold start.
__version__ = "0.2.0"

# onnxruntime reads this at import, so it is set before any module. Without it, onnxruntime 1.29 and
# later send telemetry on Linux.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
