"""Runs an ONNX model in onnxruntime exactly as written and reads its quantised tensors."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

FOUR_BIT = {TensorProto.INT4: np.int8, TensorProto.UINT4: np.uint8}


def session(model: onnx.ModelProto | str, threads: int = 1) -> onnxruntime.InferenceSession:
    """Single-threaded unless asked, no graph optimisation: every node runs as its operator is defined."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    payload = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])


def quantised_tensors(model: onnx.ModelProto) -> dict[str, int]:
    """Output name of every QuantizeLinear and its element type."""
    constants = {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants |= {node.output[0]: a.t.data_type for a in node.attribute if a.name == "value"}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            asked = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
            has_zero = len(node.input) > 2 and node.input[2]
            found[node.output[0]] = asked or (constants[node.input[2]] if has_zero else TensorProto.UINT8)
    return found


def expose(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy whose outputs also hold every QuantizeLinear result; map from tensor name to the output that carries it.

    Four-bit tensors leave through a DequantizeLinear with scale 1, because numpy has no type for them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {o.name for o in copy.graph.output}
    carrier = {}
    for name, kind in quantised_tensors(model).items():
        if kind in FOUR_BIT:
            out, one, zero = f"{name}/as_float", f"{name}/one", f"{name}/zero"
            copy.graph.initializer.append(helper.make_tensor(one, TensorProto.FLOAT, [], [1.0]))
            copy.graph.initializer.append(helper.make_tensor(zero, kind, [], [0]))
            copy.graph.node.append(helper.make_node("DequantizeLinear", [name, one, zero], [out]))
            copy.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
            carrier[name] = out
        else:
            if name not in have:
                copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
            carrier[name] = name
    return copy, carrier


def run_exposed(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], threads: int = 1) -> list[dict[str, np.ndarray]]:
    """For each feed: the model's outputs and every QuantizeLinear result, by tensor name; four-bit ones as i8/u8."""
    copy, carrier = expose(model)
    kinds = quantised_tensors(model)
    plain = [o.name for o in model.graph.output if o.name not in carrier]
    names = plain + list(carrier)
    runner = session(copy, threads)
    results = []
    for feed in feeds:
        values = runner.run(plain + [carrier[n] for n in carrier], feed)
        results.append({n: v.astype(FOUR_BIT[kinds[n]]) if kinds.get(n) in FOUR_BIT else v for n, v in zip(names, values)})
    return results
