"""Builds graphs from onnxruntime's fused operators, for models that optimum cannot export well.

Each module of this package builds one family's graph from the configuration as today's
transformers reads it, and from the weights by name. They share:

- `checkpoint`: tensors by name; none may be left over
- `graph_builder`: nodes and constants; large constants go straight to the file of weights
- `rotary`, `attention`, `layers`: the parts that a layer is made of
"""
