"""Compares onnxruntime's recorded integers with evaluation in f64: a histogram of differences.

    python compare_exact.py DIR/u8 [--whole]

DIR is what make_qdq.py wrote. Sums of products of dequantised values are exact to about 1e-13 in f64, so what differs is what
onnxruntime rounded in f32. Each layer reads the recorded integers; with --whole it reads the results of the layers before it.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

LIMITS = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}


def along(values: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """A per-channel vector shaped to broadcast along `axis`; a single value as it is."""
    return values.reshape([-1 if d == axis % rank else 1 for d in range(rank)]) if values.numel() > 1 else values.reshape(())


def padded(x: torch.Tensor, attributes: dict, value: float = 0.0) -> torch.Tensor:
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    return functional.pad(x, (left, right, top, bottom), value=value)


def float_operator(op: str, a: dict, x: list) -> torch.Tensor:
    match op:
        case "Conv":
            bias = x[2] if len(x) > 2 else None
            return functional.conv2d(
                padded(x[0], a), x[1], bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1)
            )
        case "Gemm":
            y = x[0] @ (x[1].T if a.get("transB") else x[1])
            return y + x[2] if len(x) > 2 else y
        case "MatMul":
            return x[0] @ x[1]
        case "Relu":
            return x[0].clamp(min=0)
        case "Clip":
            return x[0].clamp(float(x[1]), float(x[2]))
        case "Add":
            return x[0] + x[1]
        case "Concat":
            return torch.cat(x, a["axis"])
        case "MaxPool":
            y = padded(x[0], a, float("-inf"))
            return functional.max_pool2d(y, a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode", 0)))
        case "AveragePool":
            pads = a.get("pads", [0] * 4)
            if pads[:2] != pads[2:]:
                raise NotImplementedError("AveragePool with asymmetric pads")
            ceil, include = bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
            return functional.avg_pool2d(x[0], a["kernel_shape"], a.get("strides", 1), pads[:2], ceil, include)
        case "GlobalAveragePool":
            return x[0].mean((2, 3), keepdim=True)
        case "Flatten":
            return x[0].flatten(a.get("axis", 1))
        case "Reshape":
            return x[0].reshape([int(d) for d in x[1]])
        case "Identity":
            return x[0]
    raise NotImplementedError(op)


def evaluate(model: onnx.ModelProto, image: np.ndarray, recorded: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The integers of every QuantizeLinear; where `recorded` is given, what follows reads those instead."""
    values = {i.name: torch.from_numpy(numpy_helper.to_array(i).astype(np.float64)) for i in model.graph.initializer}
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    source = model.graph.input[0].name
    values[source] = torch.from_numpy(image.astype(np.float64))
    found = {}
    for node in model.graph.node:
        a = {t.name: helper.get_attribute_value(t) for t in node.attribute}
        x = [values[name] if name else None for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            rank = x[0].dim()
            scale = along(x[1], a.get("axis", 1), rank)
            zero = along(x[2], a.get("axis", 1), rank) if len(x) > 2 else 0
            if node.op_type == "DequantizeLinear":
                y = (x[0] - zero) * scale
            else:
                # The image is divided in f32, as the runtime does: there is no arithmetic before it to be exact about.
                steps = (x[0].float() / scale.float()).double() if node.input[0] == source else x[0] / scale
                lowest, highest = LIMITS[kinds[node.input[2]]] if len(x) > 2 else (0, 255)
                y = torch.clamp(torch.round(steps) + zero, lowest, highest)
                found[node.output[0]] = y.numpy()
                if recorded is not None:
                    y = torch.from_numpy(recorded[node.output[0]].astype(np.float64))
        elif node.op_type == "Constant":
            kinds[node.output[0]] = a["value"].data_type
            y = torch.from_numpy(np.asarray(numpy_helper.to_array(a["value"]), dtype=np.float64))
        else:
            y = float_operator(node.op_type, a, x)
        values[node.output[0]] = y
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = onnx.load(args.folder / "model.onnx")
    recorded = dict(np.load(args.folder / "expected.npz"))
    total, worst = Counter(), Counter()
    for i, image in enumerate(np.load(args.folder.parent / "inputs.npz")["image"]):
        one = {name: tensor[i : i + 1] for name, tensor in recorded.items()}
        for name, got in evaluate(model, image[None], None if args.whole else one).items():
            gaps = np.abs(got - one[name].astype(np.float64)).astype(np.int64)
            total.update(dict(enumerate(np.bincount(gaps.ravel()).tolist())))
            worst[name] = max(worst[name], int(gaps.max()))
    print("difference: elements")
    for gap, count in sorted(total.items()):
        if count:
            print(f"{gap:10}: {count}")
    print(f"{sum(w > 0 for w in worst.values())} of {len(worst)} quantised tensors differ somewhere")


if __name__ == "__main__":
    main()
