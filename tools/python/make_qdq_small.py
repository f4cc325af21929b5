"""Writes small quantised (QDQ) models with onnxruntime's integer tensors: tests/data/qdq.

    python make_qdq_small.py [--out DIR]

Each case is NAME.onnx and NAME.npz. The archive holds the graph's input and output (f32) and the integer result of every
QuantizeLinear node, each under its tensor name; four-bit tensors are stored one value a byte. Bytes are reproducible.
"""

import argparse
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import probe

KINDS = {
    "i4": (TensorProto.INT4, -8, 7, ml_dtypes.int4),
    "u4": (TensorProto.UINT4, 0, 15, ml_dtypes.uint4),
    "i8": (TensorProto.INT8, -128, 127, np.int8),
    "u8": (TensorProto.UINT8, 0, 255, np.uint8),
    "i16": (TensorProto.INT16, -32768, 32767, np.int16),
    "u16": (TensorProto.UINT16, 0, 65535, np.uint16),
}


class Net:
    """A QDQ network under construction. Values are names; the shape of a value is known to the caller."""

    def __init__(self, name: str, opset: int, x_shape: tuple):
        self.name, self.opset, self.x_shape = name, opset, x_shape
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.constants, self.nodes = [], []
        self.image = self.rng.normal(0, 1, x_shape).astype(np.float32)

    def const(self, name: str, value, dtype) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value).astype(dtype), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantise(self, value: str, name: str, kind: str, scale: float, zero: int | None = 0) -> str:
        """QuantizeLinear then DequantizeLinear; `zero` None leaves the zero point out (then the element type is u8)."""
        names = [self.const(f"{name}_scale", np.float32(scale), np.float32)]
        if zero is not None:
            names.append(self.const(f"{name}_zero", zero, KINDS[kind][3]))
        q = self.node("QuantizeLinear", [value, *names], f"{name}_quantize")
        return self.node("DequantizeLinear", [q, *names], f"{name}_dequantize")

    def weight(self, name: str, shape: tuple, kind: str, per_channel: bool, axis: int = 0, zero: bool = False, extremes: bool = True):
        """A constant integer weight under a DequantizeLinear; returns (value, scales, integers less zero point)."""
        _, lo, hi, dtype = KINDS[kind]
        if not zero and lo < 0:
            lo = -hi  # symmetric
        w = self.rng.integers(lo, hi + 1, shape)
        if extremes:
            w.flat[0], w.flat[-1] = lo, hi
        channels = shape[axis]
        fan_in = int(np.prod(shape)) // channels
        middle = (hi + lo + 1) // 2 if zero or lo == 0 else 0
        step = 1.5 / (hi - lo) / np.sqrt(fan_in)
        if per_channel:
            scale = (step * self.rng.uniform(0.5, 2.0, channels)).astype(np.float32)
            zeros = middle + (self.rng.integers(-2, 3, channels) if zero else np.zeros(channels, int))
        else:
            scale, zeros = np.float32(step), np.int64(middle + (1 if zero else 0))
        names = [self.const(f"{name}_q", w, dtype), self.const(f"{name}_scale", scale, np.float32)]
        if zero or lo == 0 or per_channel:
            names.append(self.const(f"{name}_zero", zeros, dtype))
        attributes = {"axis": axis} if per_channel else {}
        value = self.node("DequantizeLinear", names, f"{name}_dequantize", **attributes)
        return value, scale

    def bias(self, name: str, channels: int, scale, kind: str = "i32") -> str:
        """i32 at scale input x weight under a DequantizeLinear, or plain f32."""
        scale = np.broadcast_to(np.asarray(scale, np.float32), (channels,))
        integers = np.round(self.rng.normal(0, 0.3, channels) / scale).astype(np.int32)
        if kind == "f32":
            return self.const(name, integers * scale.astype(np.float64), np.float32)
        names = [self.const(f"{name}_q", integers, np.int32), self.const(f"{name}_scale", scale, np.float32)]
        return self.node("DequantizeLinear", names, f"{name}_dequantize", axis=0)

    def conv(self, x, x_scale, name, shape, kind="i8", per_channel=True, zero=False, bias="i32", **attributes) -> str:
        w, scale = self.weight(f"{name}_w", shape, kind, per_channel, zero=zero)
        names = [x, w]
        if bias:
            names.append(self.bias(f"{name}_b", shape[0], np.float32(x_scale) * scale, bias))
        return self.node("Conv", names, name, kernel_shape=list(shape[2:]), **attributes)

    def finish(self, value: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        imports = [helper.make_opsetid("", self.opset)]

        def model(shape):
            # The last node writes `y`.
            nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
            for n in nodes:
                n.output[0] = "y" if n.output[0] == value else n.output[0]
                for i, source in enumerate(n.input):
                    n.input[i] = "y" if source == value else source
            graph = helper.make_graph(
                nodes,
                self.name,
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x_shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
                self.constants,
            )
            version = helper.find_min_ir_version_for(imports)
            return helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="make_qdq_small")

        shape = probe.session(model(None)).run(None, {"x": self.image})[0].shape
        done = model(shape)
        onnx.checker.check_model(done, full_check=True)
        return done, {"x": self.image, **probe.run_exposed(done, [{"x": self.image}])[0]}


CASES = []


def case(name: str, *opsets: int):
    def register(build):
        CASES.extend((f"{name}_op{opset}", opset, build) for opset in opsets)
        return build

    return register


PAD1 = {"pads": [1, 1, 1, 1]}


@case("conv_u8_weights_i8_per_channel", 13, 19, 21, 23)
def _(name, opset):
    n = Net(name, opset, (1, 3, 8, 8))
    x = n.quantise("x", "in", "u8", 0.025, 117)
    y = n.conv(x, 0.025, "conv", (8, 3, 3, 3), **PAD1)
    return n.finish(n.quantise(n.node("Relu", [y], "relu"), "out", "u8", 0.01, 0))


@case("conv_i8_symmetric", 10, 13)
def _(name, opset):
    n = Net(name, opset, (1, 3, 8, 8))
    x = n.quantise("x", "in", "i8", 0.025)
    y = n.conv(x, 0.025, "conv", (8, 3, 3, 3), per_channel=False, bias="f32", strides=[2, 2], **PAD1)
    return n.finish(n.quantise(y, "out", "i8", 0.012))


@case("conv_i8_zero_points", 13)
def _(name, opset):
    n = Net(name, opset, (1, 3, 7, 8))
    x = n.quantise("x", "in", "i8", 0.02, -11)
    y = n.conv(x, 0.02, "conv", (5, 3, 3, 2), pads=[0, 1, 2, 0])
    return n.finish(n.quantise(y, "out", "i8", 0.012, 23))


@case("conv_weights_u8_zero_point_per_tensor", 10, 13)
def _(name, opset):
    n = Net(name, opset, (1, 4, 6, 6))
    x = n.quantise("x", "in", "u8", 0.025, 100)
    y = n.conv(x, 0.025, "conv", (6, 4, 3, 3), kind="u8", per_channel=False, zero=True, bias="f32", **PAD1)
    return n.finish(n.quantise(y, "out", "u8", 0.015, 128))


@case("conv_weights_u8_zero_point_per_channel", 13)
def _(name, opset):
    n = Net(name, opset, (1, 4, 6, 6))
    x = n.quantise("x", "in", "u8", 0.025, 130)
    y = n.conv(x, 0.025, "conv", (6, 4, 3, 3), kind="u8", zero=True, **PAD1)
    return n.finish(n.quantise(y, "out", "u8", 0.015, 120))


@case("conv_no_zero_point_input", 13)
def _(name, opset):
    # Without a zero point the element type is u8 and the zero point 0.
    n = Net(name, opset, (1, 3, 6, 6))
    n.image = np.abs(n.image)
    x = n.quantise("x", "in", "u8", 0.012, None)
    y = n.node("Relu", [n.conv(x, 0.012, "conv", (4, 3, 1, 1))], "relu")
    return n.finish(n.quantise(y, "out", "u8", 0.008, None))


@case("depthwise_separable", 13)
def _(name, opset):
    n = Net(name, opset, (1, 6, 8, 8))
    x = n.quantise("x", "in", "u8", 0.025, 128)
    y = n.conv(x, 0.025, "depthwise", (6, 1, 3, 3), group=6, strides=[2, 2], **PAD1)
    limits = [n.const("lo", 0.0, np.float32), n.const("hi", 1.5, np.float32)]
    y = n.quantise(n.node("Clip", [y, *limits], "relu6"), "mid", "u8", 1.5 / 255, 0)
    y = n.conv(y, 1.5 / 255, "pointwise", (10, 6, 1, 1))
    return n.finish(n.quantise(y, "out", "i8", 0.02, 5))


@case("grouped", 13)
def _(name, opset):
    n = Net(name, opset, (2, 6, 5, 5))
    x = n.quantise("x", "in", "i8", 0.022, 3)
    y = n.conv(x, 0.022, "conv", (9, 2, 3, 3), group=3, **PAD1)
    return n.finish(n.quantise(y, "out", "i8", 0.012, -4))


@case("weights_i4_per_channel", 21, 23)
def _(name, opset):
    # 7 x 3 x 3 x 3 = 189 weights: an odd count, the last half byte is padding.
    n = Net(name, opset, (1, 3, 6, 6))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    y = n.conv(x, 0.025, "conv", (7, 3, 3, 3), kind="i4", **PAD1)
    return n.finish(n.quantise(n.node("Relu", [y], "relu"), "out", "u8", 0.01, 0))


@case("weights_i4_full_range", 21)
def _(name, opset):
    # -8 occurs, and the zero points are not 0.
    n = Net(name, opset, (1, 4, 6, 6))
    x = n.quantise("x", "in", "i8", 0.025)
    y = n.conv(x, 0.025, "conv", (5, 4, 3, 3), kind="i4", zero=True, **PAD1)
    return n.finish(n.quantise(y, "out", "i8", 0.012))


@case("weights_u4_zero_point", 21)
def _(name, opset):
    n = Net(name, opset, (1, 3, 6, 6))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    y = n.conv(x, 0.025, "conv", (5, 3, 3, 3), kind="u4", per_channel=False, zero=True, bias="f32", **PAD1)
    return n.finish(n.quantise(y, "out", "u8", 0.015, 128))


@case("activations_u4_weights_i4", 21)
def _(name, opset):
    n = Net(name, opset, (1, 3, 8, 8))
    x = n.quantise("x", "in", "i8", 0.025)
    y = n.quantise(n.node("Relu", [n.conv(x, 0.025, "stem", (8, 3, 3, 3), **PAD1)], "relu1"), "a", "u4", 0.12)
    y = n.conv(y, 0.12, "conv", (6, 8, 3, 3), kind="i4", **PAD1)
    return n.finish(n.quantise(n.node("Relu", [y], "relu2"), "out", "u4", 0.1))


@case("residual_u8", 13)
def _(name, opset):
    n = Net(name, opset, (1, 8, 6, 6))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    y = n.quantise(n.node("Relu", [n.conv(x, 0.025, "conv1", (8, 8, 3, 3), **PAD1)], "relu1"), "a", "u8", 0.011, 0)
    y = n.quantise(n.conv(y, 0.011, "conv2", (8, 8, 3, 3), **PAD1), "b", "u8", 0.013, 119)
    y = n.node("Relu", [n.node("Add", [y, x], "add")], "relu2")
    return n.finish(n.quantise(y, "out", "u8", 0.017, 0))


@case("residual_projection_i8", 13)
def _(name, opset):
    n = Net(name, opset, (1, 4, 8, 8))
    x = n.quantise("x", "in", "i8", 0.025)
    y = n.quantise(n.node("Relu", [n.conv(x, 0.025, "conv1", (8, 4, 3, 3), strides=[2, 2], **PAD1)], "relu1"), "a", "i8", 0.02)
    y = n.quantise(n.conv(y, 0.02, "conv2", (8, 8, 3, 3), **PAD1), "b", "i8", 0.02)
    z = n.quantise(n.conv(x, 0.025, "down", (8, 4, 1, 1), strides=[2, 2]), "c", "i8", 0.018)
    y = n.node("Relu", [n.node("Add", [y, z], "add")], "relu2")
    return n.finish(n.quantise(y, "out", "i8", 0.025))


@case("residual_i16_stream", 21)
def _(name, opset):
    # The skip in 16 bits, what the convolutions read in 4.
    n = Net(name, opset, (1, 3, 6, 6))
    x = n.quantise("x", "in", "i8", 0.025)
    s = n.quantise(n.node("Relu", [n.conv(x, 0.025, "stem", (8, 3, 3, 3), **PAD1)], "relu0"), "s0", "i16", 2.5 / 32767)
    y = n.quantise(s, "q0", "u4", 0.15)
    y = n.quantise(n.node("Relu", [n.conv(y, 0.15, "conv1", (8, 8, 3, 3), kind="i4", **PAD1)], "relu1"), "a", "u4", 0.1)
    y = n.quantise(n.conv(y, 0.1, "conv2", (8, 8, 3, 3), kind="i4", **PAD1), "b", "i16", 4.0 / 32767)
    y = n.quantise(n.node("Relu", [n.node("Add", [y, s], "add")], "relu2"), "s1", "i16", 4.0 / 32767)
    return n.finish(n.quantise(y, "q1", "u8", 4.0 / 255))


@case("add_same_scale", 13)
def _(name, opset):
    n = Net(name, opset, (1, 4, 5, 5))
    x = n.quantise("x", "in", "u8", 0.025, 128)
    y = n.quantise(n.conv(x, 0.025, "conv", (4, 4, 1, 1)), "a", "u8", 0.025, 128)
    return n.finish(n.quantise(n.node("Add", [y, x], "add"), "out", "u8", 0.025, 128))


@case("maxpool", 13)
def _(name, opset):
    n = Net(name, opset, (1, 3, 9, 9))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    y = n.quantise(n.conv(x, 0.025, "conv", (6, 3, 3, 3), **PAD1), "a", "u8", 0.014, 125)
    y = n.node("MaxPool", [y], "pool", kernel_shape=[3, 3], strides=[2, 2], **PAD1)
    return n.finish(n.quantise(y, "out", "u8", 0.014, 125))


@case("maxpool_ceil_i8", 13)
def _(name, opset):
    n = Net(name, opset, (1, 3, 8, 9))
    x = n.quantise("x", "in", "i8", 0.025, -5)
    y = n.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return n.finish(n.quantise(y, "out", "i8", 0.025, -5))


for _name, _attributes in {
    "plain": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "include_pad": {"kernel_shape": [3, 3], "count_include_pad": 1, **PAD1},
    "exclude_pad": {"kernel_shape": [3, 3], "count_include_pad": 0, **PAD1},
}.items():

    @case(f"avgpool_{_name}", 13)
    def _(name, opset, attributes=_attributes):
        n = Net(name, opset, (1, 4, 6, 6))
        x = n.quantise("x", "in", "u8", 0.025, 121)
        y = n.node("AveragePool", [x], "pool", **attributes)
        return n.finish(n.quantise(y, "out", "u8", 0.011, 127))


@case("concat", 13)
def _(name, opset):
    # One branch keeps its scale, the other two are brought to the common one.
    n = Net(name, opset, (1, 4, 6, 6))
    x = n.quantise("x", "in", "u8", 0.02, 127)
    a = n.quantise(n.node("Relu", [n.conv(x, 0.02, "conv1", (5, 4, 1, 1))], "relu1"), "a", "u8", 0.009, 0)
    b = n.quantise(n.conv(x, 0.02, "conv3", (3, 4, 3, 3), **PAD1), "b", "u8", 0.013, 131)
    y = n.node("Concat", [a, b, x], "join", axis=1)
    return n.finish(n.quantise(y, "out", "u8", 0.02, 127))


@case("classifier_gemm", 13)
def _(name, opset):
    n = Net(name, opset, (2, 8, 4, 4))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    y = n.quantise(n.node("GlobalAveragePool", [x], "pool"), "p", "u8", 0.006, 130)
    y = n.node("Flatten", [y], "flatten", axis=1)
    w, scale = n.weight("fc_w", (10, 8), "i8", True)
    b = n.bias("fc_b", 10, np.float32(0.006) * scale)
    return n.finish(n.node("Gemm", [y, w, b], "fc", transB=1))


@case("classifier_gemm_quantised_out", 13)
def _(name, opset):
    n = Net(name, opset, (1, 12))
    x = n.quantise("x", "in", "i8", 0.025, 7)
    w, scale = n.weight("fc_w", (12, 10), "i8", True, axis=1)
    y = n.node("Gemm", [x, w, n.bias("fc_b", 10, np.float32(0.025) * scale)], "fc")
    return n.finish(n.quantise(y, "out", "i8", 0.02, -3))


@case("classifier_matmul", 13)
def _(name, opset):
    n = Net(name, opset, (1, 12))
    x = n.quantise("x", "in", "u8", 0.025, 127)
    w, _ = n.weight("fc_w", (12, 10), "u8", False, zero=True)
    return n.finish(n.quantise(n.node("MatMul", [x, w], "fc"), "out", "u8", 0.02, 128))


@case("requantise_chain", 13)
def _(name, opset):
    # A change of scale by itself: quantised, then quantised again coarser.
    n = Net(name, opset, (1, 3, 5, 5))
    x = n.quantise("x", "in", "u8", 0.02, 127)
    return n.finish(n.quantise(x, "out", "i8", 0.0317, -3))


@case("network", 13)
def _(name, opset):
    # Stem, pool, residual block, projection block, classifier.
    n = Net(name, opset, (1, 3, 16, 16))
    x = n.quantise("x", "in", "u8", 0.03, 127)
    y = n.quantise(n.node("Relu", [n.conv(x, 0.03, "stem", (8, 3, 3, 3), strides=[2, 2], **PAD1)], "relu0"), "s", "u8", 0.012, 0)
    y = n.node("MaxPool", [y], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = p = n.quantise(y, "p", "u8", 0.012, 0)
    y = n.quantise(n.node("Relu", [n.conv(y, 0.012, "conv1", (8, 8, 3, 3), **PAD1)], "relu1"), "a", "u8", 0.01, 0)
    y = n.quantise(n.conv(y, 0.01, "conv2", (8, 8, 3, 3), **PAD1), "b", "u8", 0.012, 121)
    y = r = n.quantise(n.node("Relu", [n.node("Add", [y, p], "add1")], "relu2"), "r", "u8", 0.013, 0)
    y = n.quantise(n.node("Relu", [n.conv(y, 0.013, "conv3", (12, 8, 3, 3), strides=[2, 2], **PAD1)], "relu3"), "c", "u8", 0.01, 0)
    y = n.quantise(n.conv(y, 0.01, "conv4", (12, 12, 3, 3), **PAD1), "d", "u8", 0.012, 133)
    z = n.quantise(n.conv(r, 0.013, "down", (12, 8, 1, 1), strides=[2, 2]), "e", "u8", 0.012, 110)
    y = n.quantise(n.node("Relu", [n.node("Add", [y, z], "add2")], "relu4"), "t", "u8", 0.013, 0)
    y = n.quantise(n.node("GlobalAveragePool", [y], "mean"), "m", "u8", 0.006, 0)
    y = n.quantise(n.node("Flatten", [y], "flatten", axis=1), "f", "u8", 0.006, 0)
    w, scale = n.weight("fc_w", (10, 12), "i8", True)
    y = n.node("Gemm", [y, w, n.bias("fc_b", 10, np.float32(0.006) * scale)], "fc", transB=1)
    return n.finish(n.quantise(y, "out", "u8", 0.012, 125))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests" / "data" / "qdq")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, opset, build in CASES:
        try:
            model, tensors = build(name, opset)
        except Exception as error:
            raise SystemExit(f"{name}: {error}") from error
        onnx.save(model, args.out / f"{name}.onnx")
        np.savez(args.out / f"{name}.npz", **tensors)
        total += sum((args.out / f"{name}.{ext}").stat().st_size for ext in ("onnx", "npz"))
        spread = {k: (int(v.min()), int(v.max()), len(np.unique(v))) for k, v in tensors.items() if v.dtype != np.float32}
        print(f"{name}: {spread}")
    print(f"{len(CASES)} cases, {total} bytes")


if __name__ == "__main__":
    main()
