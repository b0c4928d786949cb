"""The offline step: a sentence-transformers model's files -> an ONNX artifact, proven equal."""

import os

# Read by the libraries at import: no telemetry, and no threads beside torch's.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_ENABLE_HF_TRANSFER"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
