"""Sentence embeddings over HTTP from ONNX artifacts, without PyTorch at serve time."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("embedserve")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
