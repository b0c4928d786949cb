"""nomic_bert as an ONNX graph of onnxruntime's fused operators, built from the weights.

Built by hand and not traced: the same weights give the same bytes, each node is one line here,
and the choice of attention kernel is explicit. All com.microsoft operators used have float32
kernels on CPU and CUDA:
https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.families.nomic_bert import inverse_frequencies
from export.families.nomic_bert_checkpoint import read_checkpoint
from export.families.nomic_bert_facts import Facts

# Below this many tokens both attention kernels take the same time and little memory; above it
# the masked kernel's (t, t) matrix grows: at 8,192 tokens and 12 heads it is 3.2 GB.
LONGEST_MASKED = 512

_FUSED = "com.microsoft"


def export_onnx(model_dir: Path, out: Path) -> None:
    """Write the file `out`: input_ids, attention_mask (b, t) int64 -> last_hidden_state (b, t, h).

    The output is float32; rows at padding have no meaning. Token types are left out because they
    are 0 for every single text: their embedding is added to the word embeddings here. No length
    limit is built in: rotary angles are computed from t.

    A pass of more than `LONGEST_MASKED` tokens in which every sequence fills all of them attends
    without a mask, in onnxruntime's flash kernel on CPU and its memory-efficient one on CUDA,
    neither of which holds a (t, t) matrix. Any other pass attends with the mask. A caller that
    wants a text's bits not to depend on its neighbours gives longer texts only to passes without
    padding.

    `auto_map` in config.json is tolerated, as this graph replaces the code it names. Raises
    ValueError as `read_checkpoint` does. The same files give the same bytes.
    """
    facts, weights = read_checkpoint(model_dir, allow_auto_map=True)
    model = build(facts, weights)
    out.write_bytes(model.SerializeToString(deterministic=True))


def build(facts: Facts, weights: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """The graph of `export_onnx` from weights under the hub's names, as `read_weights` gives."""
    graph = _Graph(facts, weights)
    cos, sin = graph.rotary_tables()
    x = graph.embed()
    for n in range(facts.num_hidden_layers):
        x = graph.layer(x, f"encoder.layers.{n}", cos, sin)
    graph.node("Identity", [x], "last_hidden_state")
    return graph.model()


class _Graph:
    """Nodes and initializers in the order they are needed; each node names its one output."""

    def __init__(self, facts: Facts, weights: dict[str, torch.Tensor]) -> None:
        self.facts = facts
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        domain = _FUSED if op in _FUSED_OPERATORS else ""
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes)
        )
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name].numpy())

    def linear(self, x: str, name: str, output: str) -> str:
        weight = self.constant(name, self.weights[f"{name}.weight"].numpy().T)
        return self.node("MatMul", [x, weight], output)

    def rotary_tables(self) -> tuple[str, str]:
        """Cosines and sines (t, head / 2), and what decides about the mask."""
        frequencies = inverse_frequencies(self.facts.head_size, self.facts.rope_theta)
        self.constant("zero", np.array(0, np.int64))
        self.constant("one", np.array(1, np.int64))
        self.constant("axis_0", np.array([0], np.int64))
        self.constant("axis_1", np.array([1], np.int64))
        self.constant("longest_masked", np.array(LONGEST_MASKED, np.int64))
        self.constant("frequencies", frequencies.numpy()[None, :])
        self.node("Shape", ["input_ids"], "shape")
        self.node("Gather", ["shape", "one"], "tokens")
        self.node("Range", ["zero", "tokens", "one"], "positions")
        self.node("Cast", ["positions"], "positions_float", to=TensorProto.FLOAT)
        self.node("Unsqueeze", ["positions_float", "axis_1"], "position_column")
        self.node("Mul", ["position_column", "frequencies"], "angles")
        self._unmasked()
        return self.node("Cos", ["angles"], "cos"), self.node("Sin", ["angles"], "sin")

    def _unmasked(self) -> None:
        """Whether this pass attends without a mask: long, and no padding anywhere."""
        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        self.node("ReduceMin", ["mask"], "least", keepdims=0)
        self.node("Cast", ["least"], "no_padding", to=TensorProto.BOOL)
        self.node("Greater", ["tokens", "longest_masked"], "long")
        self.node("And", ["long", "no_padding"], "unmasked")

    def embed(self) -> str:
        words = self.weights["embeddings.word_embeddings.weight"]
        types = self.weights["embeddings.token_type_embeddings.weight"]
        table = self.constant("embeddings", (words + types[0]).numpy())
        x = self.node("Gather", [table, "input_ids"], "embedded")
        norm = [self.weight("emb_ln.weight"), self.weight("emb_ln.bias")]
        epsilon = self.facts.layer_norm_eps
        return self.node("LayerNormalization", [x, *norm], "emb_ln", epsilon=epsilon)

    def layer(self, x: str, name: str, cos: str, sin: str) -> str:
        query, key, value = self.project(x, f"{name}.attn")
        query, key = (
            self.node("RotaryEmbedding", [part, "axis_0", cos, sin], f"{part}.rotated")
            for part in (query, key)
        )
        mixed = self.attend(f"{name}.attn.mixed", query, key, value)
        x = self.residual(self.linear(mixed, f"{name}.attn.out_proj", f"{name}.attn"), x, name, 1)
        gate = self.linear(x, f"{name}.mlp.fc12", f"{name}.mlp.gate")
        gate = self.node("QuickGelu", [gate], f"{name}.mlp.silu", alpha=1.0)  # x * sigmoid(x)
        up = self.linear(x, f"{name}.mlp.fc11", f"{name}.mlp.up")
        gated = self.node("Mul", [up, gate], f"{name}.mlp.gated")
        return self.residual(self.linear(gated, f"{name}.mlp.fc2", f"{name}.mlp"), x, name, 2)

    def project(self, x: str, name: str) -> tuple[str, ...]:
        """Three products rather than a joint one: on CPU splitting it would copy all of it."""
        joint = self.weights[f"{name}.Wqkv.weight"]
        parts = zip(("query", "key", "value"), joint.chunk(3), strict=True)
        return tuple(
            self.node(
                "MatMul",
                [x, self.constant(f"{name}.{part}.weight", weight.numpy().T)],
                f"{name}.{part}",
            )
            for part, weight in parts
        )

    def attend(self, output: str, query: str, key: str, value: str) -> str:
        """Attention with or without the mask; both read the same tensors of the outer graph."""
        branches = {
            "then_branch": self._attention(f"{output}.unmasked", [query, key, value]),
            "else_branch": self._attention(f"{output}.masked", [query, key, value, "", "mask"]),
        }
        return self.node("If", ["unmasked"], output, **branches)

    def _attention(self, output: str, inputs: list[str]) -> onnx.GraphProto:
        node = helper.make_node(
            "MultiHeadAttention",
            inputs,
            [output],
            name=output,
            domain=_FUSED,
            num_heads=self.facts.num_attention_heads,
        )
        return helper.make_graph([node], output, [], [_hidden_states(output, self.facts)])

    def residual(self, x: str, skip: str, name: str, number: int) -> str:
        norm = [self.weight(f"{name}.norm{number}.{part}") for part in ("weight", "bias")]
        return self.node(
            "SkipLayerNormalization",
            [x, skip, *norm],
            f"{name}.norm{number}",
            epsilon=self.facts.layer_norm_eps,
        )

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"])
            for name in ("input_ids", "attention_mask")
        ]
        outputs = [_hidden_states("last_hidden_state", self.facts)]
        graph = helper.make_graph(self.nodes, "nomic_bert", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(
            graph, producer_name="embedserve", opset_imports=opsets, ir_version=8
        )


_FUSED_OPERATORS = frozenset(
    {"MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization"}
)


def _hidden_states(name: str, facts: Facts) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", facts.hidden_size])
