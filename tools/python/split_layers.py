"""Cuts a QDQ model at its quantised tensors into models of one layer each.

In a whole network one rounding that falls the other way changes what every later layer reads, so two exact executions drift
apart. A layer that is given the recorded integers has no such history: it agrees with the recording within 1.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def split(model: onnx.ModelProto, tensors: dict[str, np.ndarray], folder: Path) -> int:
    """Writes NNN.onnx and NNN.npz for every QuantizeLinear whose source is not the graph's input; returns their number.

    `tensors` is what was recorded, images along axis 0. The layer's graph carries the name of its quantised tensor. Its inputs
    `x0`, `x1`.. (f32, batch 1) are the dequantised values of the quantised tensors it reads, its output `y` the dequantised
    result. The archive holds `x0`.., `y` for all images and `lsb`, the scale of `y`.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    producer = {o: n for n in graph.node for o in n.output}
    sources = {i.name for i in graph.input}

    def known(name: str) -> np.ndarray:
        if name in constants:
            return numpy_helper.to_array(constants[name])
        return numpy_helper.to_array(next(a.t for a in producer[name].attribute if a.name == "value"))

    def value_of(quantise: onnx.NodeProto) -> np.ndarray:
        """f32 (q - zero) * scale, one operation each, as DequantizeLinear defines it."""
        zero = known(quantise.input[2]).astype(np.int32) if len(quantise.input) > 2 else np.int32(0)
        q = tensors[quantise.output[0]].astype(np.int32)
        return (q - zero).astype(np.float32) * known(quantise.input[1]).astype(np.float32)

    count = 0
    for last in [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in sources]:
        nodes, inputs, seen, pending = [], {}, set(), [last.output[0]]
        while pending:
            name = pending.pop()
            if name in seen or name not in producer:
                continue
            seen.add(name)
            node = producer[name]
            nodes.append(node)
            if node.op_type == "QuantizeLinear" and node is not last:
                inputs[node.output[0]] = node
                pending.extend(node.input[1:])
            else:
                pending.extend(node.input)
        order = [n for n in graph.node if any(n is m for m in nodes)]
        reads = {name: f"x{i}" for i, name in enumerate(sorted(inputs))}
        made = []
        for node in order:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.output[0] in inputs:
                copy.input[0] = reads[node.output[0]]
            made.append(copy)
        made.append(helper.make_node("DequantizeLinear", [last.output[0], *last.input[1:]], ["y"], name="y"))
        arrays = {reads[name]: value_of(node) for name, node in inputs.items()} | {"y": value_of(last)}
        used = {i for n in made for i in n.input}

        def declare(name: str):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, *arrays[name].shape[1:]))

        layer = helper.make_model(
            helper.make_graph(
                made,
                last.output[0],
                [declare(reads[name]) for name in sorted(inputs)],
                [declare("y")],
                [i for i in graph.initializer if i.name in used],
            ),
            opset_imports=[o for o in model.opset_import if o.domain == ""],
            ir_version=model.ir_version,
        )
        onnx.save(layer, folder / f"{count:03}.onnx")
        np.savez(folder / f"{count:03}.npz", **arrays, lsb=known(last.input[1]).astype(np.float32))
        count += 1
    return count
