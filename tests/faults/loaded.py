"""What an export loads, for processes that are forked from one that has it."""

import importlib
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in (
        "export.cli",  # first: it sets what the libraries read at import
        "export.facts",
        "export.graph",
        "export.tokenizer",
        "export.verify",
        "onnxruntime.transformers.fusion_options",
        "onnxruntime.transformers.optimizer",
        "optimum.exporters.onnx.convert",
        "sentence_transformers",
        "tests.export.checkpoints",
    ):
        importlib.import_module(name)
