"""Sentence embeddings over HTTP from ONNX artifacts, without PyTorch at serve time."""

# Not asked of the installed package's metadata: that takes a twentieth of a cold start.
__version__ = "0.1.0"
