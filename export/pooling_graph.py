"""Pooling modes -> pooling.onnx: pooling on the device that holds the token embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_OPSET = 17
# Rows (b, h) of `x` (b, t, h) float32 and `mask` (b, t) of 0.0/1.0, as in arrays/pooling.py.
# An average is one product of weights (b, 1, t) with x, which devices compute fastest.
_MODES: Mapping[str, str] = {
    "cls": """
        first = ArgMax <axis = 1, keepdims = 1> (mask)
        cls = GatherND <batch_dims = 1> (x, first)
    """,
    "max": """
        real = Cast <to = 9> (mask3)
        lowest = Constant <value = float {-inf}> ()
        hidden = Where (real, x, lowest)
        max = ReduceMax <axes = [1], keepdims = 0> (hidden)
    """,
    "mean": """
        mean_weights = Div (mask, tokens)
        mean_row = Unsqueeze (mean_weights, axis1)
        mean_rows = MatMul (mean_row, x)
        mean = Squeeze (mean_rows, axis1)
    """,
    "mean_sqrt_len_tokens": """
        root = Sqrt (tokens)
        sqrt_weights = Div (mask, root)
        sqrt_row = Unsqueeze (sqrt_weights, axis1)
        sqrt_rows = MatMul (sqrt_row, x)
        mean_sqrt_len_tokens = Squeeze (sqrt_rows, axis1)
    """,
    "weightedmean": """
        counted = CumSum (mask, axis)
        position = Mul (counted, mask)
        total = ReduceSum <keepdims = 1> (position, axis1)
        positive = Max (total, least)
        weighted_weights = Div (position, positive)
        weighted_row = Unsqueeze (weighted_weights, axis1)
        weighted_rows = MatMul (weighted_row, x)
        weightedmean = Squeeze (weighted_rows, axis1)
    """,
    "bag": """
        bag_weights = Div (mask, tokens)
        bag_row = Unsqueeze (bag_weights, axis1)
        bag_rows = MatMul (bag_row, x)
        bag = Squeeze (bag_rows, axis1)
    """,
    "lasttoken": """
        last = ArgMax <axis = 1, keepdims = 1, select_last_index = 1> (mask)
        lasttoken = GatherND <batch_dims = 1> (x, last)
    """,
}


def export(modes: Sequence[str], hidden_size: int, path: Path) -> None:
    """Write the graph: token_embeddings (b, t, h) float32, attention_mask (b, t) int64 -> rows.

    rows: (b, h * len(modes)) float32.
    """
    import onnx
    from onnx import parser

    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {_OPSET}], producer_name: "embedserve">
        pooling (float[b, t, {hidden_size}] token_embeddings, int64[b, t] attention_mask)
          => (float[b, {hidden_size * len(modes)}] rows)
          <int64 axis = {{1}}, int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}},
           float least = {{1e-9}}>
        {{
            x = Identity (token_embeddings)
            mask = Cast <to = 1> (attention_mask)
            mask3 = Unsqueeze (mask, axis2)
            count = ReduceSum <keepdims = 1> (mask, axis1)
            tokens = Max (count, least)
            {"".join(_MODES[mode] for mode in dict.fromkeys(modes))}
            rows = Concat <axis = 1> ({", ".join(modes)})
        }}
    """)
    onnx.checker.check_model(model)
    onnx.save(model, path)
