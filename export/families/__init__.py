"""Graphs written here, of onnxruntime's fused operators, for what optimum cannot export well.

Each module of this package builds one family's graph from the configuration as today's
transformers reads it, and from the weights by name. What all of them share:

- `checkpoint`: tensors by name, every one of them accounted for
- `graph_builder`: nodes and constants; large constants go straight to the file of weights
- `rotary`, `attention`, `layers`: the parts that a layer is made of
"""
