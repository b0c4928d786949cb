"""Nodes and constants of one graph; large constants go straight to the file beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from embedserve.artifact import WEIGHTS

OPSET = 17
IR_VERSION = 8
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "last_hidden_state"

# Bytes: smaller tensors (shapes, biases) stay in the graph.
LARGE_TENSOR = 4096

# Operators of onnxruntime's own domain; its SimplifiedLayerNormalization is in the default domain.
_DOMAIN = "com.microsoft"
_FUSED = frozenset(
    {
        "BiasGelu",
        "FastGelu",
        "FusedMatMul",
        "Gelu",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipSimplifiedLayerNormalization",
    }
)


class GraphBuilder:
    """Builds a graph in the order in which its nodes run; the same calls give the same bytes.

    `weights` is the open file that large constants are written to. None: constants are dropped, for
    a build that only checks names and shapes.

    `ids` and `mask` name the tensors (b, t) that parts read: the graph's inputs, or padded ones.
    """

    def __init__(self, weights: BinaryIO | None) -> None:
        self.ids, self.mask = INPUTS
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._numbers: Counter[str] = Counter()
        self._outputs: set[str] = set()

    def node(
        self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node with one output and return the output's name; "" leaves an input out."""
        return self.nodes(op, inputs, [output or self.fresh(op)], **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Append a node with several outputs; "" leaves one out."""
        self._nodes.append(_node(op, inputs, outputs, **attributes))
        self._outputs.update(outputs)
        return list(outputs)

    def has(self, name: str) -> bool:
        """Whether a node has this output."""
        return name in self._outputs

    def branch(
        self, condition: str, then: Branch, otherwise: Branch, output: str | None = None
    ) -> str:
        """Append an If of two branches, which read tensors of this graph; return its output."""
        name = output or self.fresh("If")
        return self.node(
            "If",
            [condition],
            name,
            then_branch=then.graph(f"{name}.then"),
            else_branch=otherwise.graph(f"{name}.else"),
        )

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant and return its name; an existing one stays as it is."""
        if name in self._initializers:
            return name
        if self._weights is None:
            tensor = TensorProto(name=name)
        else:
            tensor = self._tensor(name, np.require(value, requirements="C"))
        self._initializers[name] = tensor
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        name = f"int64[{','.join(map(str, values))}]"
        return self.constant(name, np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.constant(f"int64({value})", np.array(value, np.int64))

    def number(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(f"float32({value!r})", np.array(value, np.float32))

    def _tensor(self, name: str, value: NDArray[np.generic]) -> onnx.TensorProto:
        assert self._weights is not None
        if value.nbytes < LARGE_TENSOR:
            return numpy_helper.from_array(value, name)
        tensor = TensorProto(
            name=name,
            dims=value.shape,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            raw_data=b"",
        )
        set_external_data(tensor, WEIGHTS, self._weights.tell(), value.nbytes)
        tensor.ClearField("raw_data")
        self._weights.write(value.data)
        return tensor

    def fresh(self, stem: str) -> str:
        """A new name: the stem and a number."""
        self._numbers[stem] += 1
        return f"{stem}_{self._numbers[stem]}"

    def write(self, output: str, hidden_size: int, path: Path) -> onnx.ModelProto:
        """Write the graph of input_ids and attention_mask -> `output` (b, t, h) as `path`."""
        self.node("Identity", [output], OUTPUT)
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in INPUTS
        ]
        outputs = [
            helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["b", "t", hidden_size])
        ]
        initializers = list(self._initializers.values())
        graph = helper.make_graph(self._nodes, "encoder", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_DOMAIN, 1)]
        model = helper.make_model(
            graph, producer_name="embedserve", opset_imports=opsets, ir_version=IR_VERSION
        )
        path.write_bytes(model.SerializeToString(deterministic=True))
        return model


class Branch:
    """The nodes of one branch of an If. They may read tensors of the graph around it, too."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._last = ""

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node; the last one's output is the branch's."""
        self._nodes.append(_node(op, inputs, [output], **attributes))
        self._last = output
        return output

    def graph(self, name: str) -> onnx.GraphProto:
        """The branch as a graph. Its names get a prefix: two branches may use the same ones."""
        own = {output for node in self._nodes for output in node.output if output}
        for node in self._nodes:
            node.name = f"{name}.{node.name}"
            for names in (node.input, node.output):
                names[:] = [f"{name}.{n}" if n in own else n for n in names]
        output = helper.make_tensor_value_info(f"{name}.{self._last}", TensorProto.FLOAT, None)
        return helper.make_graph(self._nodes, name, [], [output])


def _node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
) -> onnx.NodeProto:
    domain = _DOMAIN if op in _FUSED else ""
    name = next(output for output in outputs if output)
    return helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
