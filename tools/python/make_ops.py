"""Writes single-operator float models with onnxruntime's results: tests/data/onnx_ops.

    python make_ops.py [--out DIR]

Each case is NAME.onnx and NAME.npz; the archive holds every graph input and every graph output under its tensor name.
Bytes are reproducible: values are drawn from a generator seeded by the case's name. Every result is also compared with
the ONNX reference evaluator, and cases where the two disagree are printed.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import probe


class Case:
    """One model under construction: graph input `x`, constants, nodes, output `y`."""

    def __init__(self, name: str, opset: int):
        self.name, self.opset = name, opset
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.inputs: dict[str, np.ndarray] = {}
        self.constants: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.output_shape = None

    def draw(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        # Multiples of 1/64: exact in f32 and compressible to the eye.
        return (np.round(self.rng.normal(0, scale, shape) * 64) / 64).astype(np.float32)

    def input(self, *shape: int, name: str = "x", scale: float = 1.0) -> str:
        self.inputs[name] = self.draw(*shape, scale=scale)
        return name

    def const(self, name: str, value, dtype=None, node: bool = False) -> str:
        """An initialiser, or a Constant node."""
        array = np.asarray(value, dtype=dtype)
        tensor = numpy_helper.from_array(array, name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"/{name}/Constant", value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def ints(self, name: str, values, node: bool = False) -> str:
        return self.const(name, values, np.int64, node)

    def node(self, op: str, inputs: list[str], output: str = "y", **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def model(self, outputs: dict[str, tuple]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in self.inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            self.constants,
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports), producer_name="make_ops"
        )


CASES: list[tuple[str, int, callable]] = []


def case(name: str, *opsets: int):
    """Registers a builder once per opset."""

    def register(build):
        for opset in opsets:
            CASES.append((f"{name}_op{opset}", opset, build))
        return build

    return register


# --- convolution --------------------------------------------------------------------------------------------------------


def conv(name, x_shape, w_shape, opsets=(11,), bias=True, as_node=False, **attributes):
    @case(f"conv_{name}", *opsets)
    def build(c: Case):
        names = [c.input(*x_shape), c.const("w", c.draw(*w_shape, scale=0.3), node=as_node)]
        if bias:
            names.append(c.const("b", c.draw(w_shape[0], scale=0.3), node=as_node))
        c.node("Conv", names, **attributes)


conv("3x3_pad", (1, 3, 6, 5), (4, 3, 3, 3), (9, 11, 13, 22, 23), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
conv("1x1", (2, 5, 4, 4), (6, 5, 1, 1), kernel_shape=[1, 1])
conv("1x1_stride2", (1, 4, 5, 5), (6, 4, 1, 1), kernel_shape=[1, 1], strides=[2, 2])
conv("no_bias", (1, 3, 5, 5), (2, 3, 3, 3), bias=False, kernel_shape=[3, 3])
conv("kernel_shape_absent", (1, 2, 5, 5), (3, 2, 3, 3), pads=[1, 1, 1, 1])
conv("constant_nodes", (1, 2, 5, 5), (3, 2, 3, 3), as_node=True, kernel_shape=[3, 3])
conv("stride2", (1, 3, 7, 8), (4, 3, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
conv("stride_2x1", (1, 2, 7, 6), (3, 2, 3, 3), kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1])
conv("asymmetric_pads", (1, 2, 5, 6), (3, 2, 3, 3), kernel_shape=[3, 3], pads=[0, 1, 2, 0])
conv("pads_end_only", (1, 2, 6, 6), (3, 2, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
conv("1x7", (1, 3, 5, 8), (4, 3, 1, 7), kernel_shape=[1, 7], pads=[0, 3, 0, 3])
conv("7x1", (1, 3, 8, 5), (4, 3, 7, 1), kernel_shape=[7, 1], pads=[3, 0, 3, 0])
conv("2x4", (1, 2, 6, 7), (3, 2, 2, 4), kernel_shape=[2, 4], pads=[1, 2, 0, 1])
conv("5x5", (1, 2, 7, 7), (3, 2, 5, 5), kernel_shape=[5, 5], pads=[2, 2, 2, 2])
conv("7x7_stride2", (1, 3, 12, 12), (4, 3, 7, 7), kernel_shape=[7, 7], strides=[2, 2], pads=[3, 3, 3, 3])
conv("kernel_equals_image", (1, 3, 4, 4), (5, 3, 4, 4), kernel_shape=[4, 4])
conv("dilation2", (1, 2, 8, 8), (3, 2, 3, 3), kernel_shape=[3, 3], dilations=[2, 2], pads=[2, 2, 2, 2])
conv("dilation_1x3", (1, 2, 5, 9), (3, 2, 2, 3), kernel_shape=[2, 3], dilations=[1, 3])
conv("groups2", (1, 4, 5, 5), (6, 2, 3, 3), group=2, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
conv("groups3_stride2", (2, 6, 6, 6), (3, 2, 3, 3), group=3, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
conv("depthwise", (1, 5, 6, 6), (5, 1, 3, 3), group=5, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
conv("depthwise_stride2", (1, 4, 7, 7), (4, 1, 3, 3), group=4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
conv("depthwise_multiplier2", (1, 3, 5, 5), (6, 1, 3, 3), group=3, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
conv("auto_same_upper", (1, 2, 6, 5), (3, 2, 4, 4), (9, 11), auto_pad="SAME_UPPER", kernel_shape=[4, 4])
conv("auto_same_upper_stride2", (1, 2, 7, 6), (3, 2, 3, 3), auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[2, 2])
conv("auto_same_lower", (1, 2, 6, 5), (3, 2, 4, 4), auto_pad="SAME_LOWER", kernel_shape=[4, 4])
conv("auto_same_lower_stride2", (1, 2, 6, 6), (3, 2, 3, 3), auto_pad="SAME_LOWER", kernel_shape=[3, 3], strides=[2, 2])
conv("auto_valid", (1, 2, 6, 5), (3, 2, 3, 3), auto_pad="VALID", kernel_shape=[3, 3])
conv("auto_notset", (1, 2, 6, 5), (3, 2, 3, 3), auto_pad="NOTSET", kernel_shape=[3, 3], pads=[1, 0, 1, 0])


# --- per-channel arithmetic and activations -----------------------------------------------------------------------------


@case("batchnorm", 9, 14, 15)
def _(c: Case):
    x = c.input(2, 4, 3, 3)
    names = [c.const(n, c.draw(4, scale=0.5)) for n in ("scale", "bias", "mean")]
    c.node("BatchNormalization", [x, *names, c.const("var", np.abs(c.draw(4)) + 0.25, np.float32)], epsilon=1e-3)


@case("conv_batchnorm_relu", 15)
def _(c: Case):
    y = c.node("Conv", [c.input(1, 3, 5, 5), c.const("w", c.draw(4, 3, 3, 3))], "conv", pads=[1, 1, 1, 1])
    names = [c.const(n, c.draw(4, scale=0.5)) for n in ("scale", "bias", "mean")]
    y = c.node("BatchNormalization", [y, *names, c.const("var", np.abs(c.draw(4)) + 0.25, np.float32)], "norm")
    c.node("Relu", [y])


@case("relu", 9, 13, 14)
def _(c: Case):
    c.node("Relu", [c.input(1, 3, 4, 4)])


@case("clip_attributes", 9)
def _(c: Case):
    c.node("Clip", [c.input(1, 3, 4, 4, scale=5)], min=0.0, max=6.0)


@case("clip_attribute_min_only", 9)
def _(c: Case):
    c.node("Clip", [c.input(1, 3, 4, 4)], min=0.0)


@case("clip_inputs", 11, 12, 13)
def _(c: Case):
    c.node("Clip", [c.input(1, 3, 4, 4, scale=5), c.const("lo", 0.0, np.float32), c.const("hi", 6.0, np.float32)])


@case("clip_inputs_constant_nodes", 13)
def _(c: Case):
    lo, hi = c.const("lo", -1.5, np.float32, node=True), c.const("hi", 2.25, np.float32, node=True)
    c.node("Clip", [c.input(1, 3, 4, 4, scale=3), lo, hi])


@case("clip_input_max_only", 13)
def _(c: Case):
    c.node("Clip", [c.input(1, 3, 4, 4, scale=3), "", c.const("hi", 1.0, np.float32)])


@case("clip_input_min_only", 13)
def _(c: Case):
    c.node("Clip", [c.input(1, 3, 4, 4, scale=3), c.const("lo", 0.0, np.float32)])


@case("add_two_inputs", 9, 13, 14)
def _(c: Case):
    c.node("Add", [c.input(1, 3, 4, 4), c.input(1, 3, 4, 4, name="x2")])


@case("add_itself", 13)
def _(c: Case):
    x = c.input(1, 3, 4, 4)
    c.node("Add", [x, x])


@case("add_branch", 13)
def _(c: Case):
    x = c.input(1, 3, 4, 4)
    c.node("Add", [c.node("Relu", [x], "r"), x])


for _op in ("Add", "Mul", "Sub", "Div"):
    for _form, _shape in (("c11", (3, 1, 1)), ("1c11", (1, 3, 1, 1)), ("scalar", ())):

        @case(f"{_op.lower()}_constant_{_form}", 13)
        def _(c: Case, op=_op, shape=_shape):
            value = c.draw(*shape) + np.float32(0.0078125)
            c.node(op, [c.input(1, 3, 4, 4), c.const("k", value, np.float32)])


for _op in ("Add", "Mul"):

    @case(f"{_op.lower()}_constant_first", 13)
    def _(c: Case, op=_op):
        x = c.input(1, 3, 4, 4)
        c.node(op, [c.const("k", c.draw(3, 1, 1)), x])


@case("add_constant_full", 13)
def _(c: Case):
    c.node("Add", [c.input(1, 3, 4, 4), c.const("k", c.draw(1, 3, 4, 4))])


@case("identity", 9, 16)
def _(c: Case):
    c.node("Identity", [c.input(1, 3, 4, 4)])


@case("dropout_attribute", 9)
def _(c: Case):
    c.node("Dropout", [c.input(1, 3, 4, 4)], ratio=0.5)


@case("dropout_inputs", 12, 22)
def _(c: Case):
    c.node("Dropout", [c.input(1, 3, 4, 4), c.const("ratio", 0.5, np.float32), c.const("training", False, np.bool_)])


@case("dropout_no_inputs", 13)
def _(c: Case):
    c.node("Dropout", [c.input(1, 3, 4, 4)])


# --- joining and pooling ------------------------------------------------------------------------------------------------


@case("concat_channels", 9, 11, 13)
def _(c: Case):
    c.node("Concat", [c.input(1, 3, 4, 4), c.input(1, 2, 4, 4, name="x2")], axis=1)


@case("concat_negative_axis", 13)
def _(c: Case):
    c.node("Concat", [c.input(1, 3, 4, 4), c.input(1, 2, 4, 4, name="x2")], axis=-3)


@case("concat_three_branches", 13)
def _(c: Case):
    x = c.input(1, 2, 4, 4)
    pooled = c.node("MaxPool", [x], "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    c.node("Concat", [x, c.node("Relu", [x], "r"), pooled], axis=1)


def pool(op, name, x_shape, opsets=(11,), **attributes):
    @case(f"{op.lower()}_{name}", *opsets)
    def build(c: Case):
        x = c.input(*x_shape)
        # All negative: a pad of 0 in a max pool would show.
        c.inputs[x] = -np.abs(c.inputs[x]) - np.float32(0.5) if op == "MaxPool" else c.inputs[x]
        c.node(op, [x], **attributes)


pool("MaxPool", "2x2", (1, 3, 6, 6), (9, 10, 12, 22), kernel_shape=[2, 2], strides=[2, 2])
pool("MaxPool", "3x3_pad", (1, 3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
pool("MaxPool", "stride_absent", (1, 2, 5, 5), kernel_shape=[3, 3])
pool("MaxPool", "ceil", (1, 3, 6, 7), (10, 12), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
pool("MaxPool", "ceil_pad", (1, 2, 6, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
pool("MaxPool", "ceil_window_all_padding", (1, 2, 5, 5), kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1)
pool("MaxPool", "asymmetric_pads", (1, 2, 5, 6), kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 1, 0])
pool("MaxPool", "rectangular", (1, 2, 6, 8), kernel_shape=[1, 3], strides=[1, 2])
pool("MaxPool", "dilation2", (1, 2, 7, 7), kernel_shape=[3, 3], dilations=[2, 2], strides=[1, 1])
pool("MaxPool", "auto_same_upper", (1, 2, 7, 6), auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[2, 2])
pool("MaxPool", "auto_same_lower", (1, 2, 6, 6), auto_pad="SAME_LOWER", kernel_shape=[2, 2], strides=[1, 1])
pool("AveragePool", "2x2", (1, 3, 6, 6), (9, 10, 19, 22), kernel_shape=[2, 2], strides=[2, 2])
pool("AveragePool", "exclude_pad", (1, 3, 5, 5), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=0)
pool("AveragePool", "include_pad", (1, 3, 5, 5), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1)
pool("AveragePool", "stride2_exclude_pad", (1, 2, 7, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
pool("AveragePool", "asymmetric_exclude_pad", (1, 2, 5, 6), kernel_shape=[3, 2], pads=[0, 1, 1, 0])
pool("AveragePool", "asymmetric_include_pad", (1, 2, 5, 6), kernel_shape=[3, 2], pads=[0, 1, 1, 0], count_include_pad=1)
pool("AveragePool", "ceil", (1, 3, 6, 7), (10, 11, 19, 22), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
pool("AveragePool", "ceil_exclude_pad", (1, 2, 6, 7), (11, 19), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
pool("AveragePool", "ceil_include_pad", (1, 2, 6, 7), (11, 19), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1)  # fmt: skip
pool("AveragePool", "rectangular", (1, 2, 6, 8), kernel_shape=[1, 3], strides=[1, 2])
pool("AveragePool", "auto_same_upper", (1, 2, 7, 6), auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[2, 2])


@case("global_average_pool", 9, 22)
def _(c: Case):
    c.node("GlobalAveragePool", [c.input(2, 3, 5, 4)])


@case("reducemean_attribute_keep", 9, 11, 13)
def _(c: Case):
    c.node("ReduceMean", [c.input(1, 3, 5, 4)], axes=[2, 3], keepdims=1)


@case("reducemean_attribute_negative", 13)
def _(c: Case):
    c.node("ReduceMean", [c.input(1, 3, 5, 4)], axes=[-1, -2], keepdims=1)


@case("reducemean_attribute_drop", 13)
def _(c: Case):
    c.node("ReduceMean", [c.input(2, 3, 5, 4)], axes=[2, 3], keepdims=0)


@case("reducemean_input_keep", 18, 23)
def _(c: Case):
    c.node("ReduceMean", [c.input(1, 3, 5, 4), c.ints("axes", [2, 3])], keepdims=1)


@case("reducemean_input_drop", 18)
def _(c: Case):
    c.node("ReduceMean", [c.input(1, 3, 5, 4), c.ints("axes", [-2, -1], node=True)], keepdims=0)


# --- dense layers -------------------------------------------------------------------------------------------------------


def gemm(name, a_shape, b_shape, c_shape, opsets=(13,), **attributes):
    @case(f"gemm_{name}", *opsets)
    def build(c: Case):
        names = [c.input(*a_shape), c.const("b", c.draw(*b_shape, scale=0.3))]
        if c_shape is not None:
            names.append(c.const("c", c.draw(*c_shape)))
        c.node("Gemm", names, **attributes)


gemm("plain", (2, 6), (6, 5), (5,), (9, 11, 13))
gemm("trans_b", (1, 6), (5, 6), (5,), (9, 13), transB=1)
gemm("trans_a", (6, 2), (6, 5), (5,), transA=1)
gemm("trans_a_trans_b", (6, 2), (5, 6), (5,), transA=1, transB=1)
gemm("alpha_beta", (2, 6), (5, 6), (5,), transB=1, alpha=0.5, beta=-2.0)
gemm("beta_zero", (2, 6), (6, 5), (5,), beta=0.0)
gemm("no_c", (2, 6), (6, 5), None)
gemm("c_scalar", (2, 6), (6, 5), ())
gemm("c_row", (2, 6), (6, 5), (1, 5))
gemm("c_matrix_one_row", (1, 6), (6, 5), (1, 5), transB=0)


@case("matmul_constant", 9, 13)
def _(c: Case):
    c.node("MatMul", [c.input(2, 6), c.const("w", c.draw(6, 5))])


@case("matmul_add_bias", 13)
def _(c: Case):
    y = c.node("MatMul", [c.input(2, 6), c.const("w", c.draw(6, 5))], "m")
    c.node("Add", [y, c.const("b", c.draw(5))])


@case("pool_flatten_gemm", 13)
def _(c: Case):
    y = c.node("GlobalAveragePool", [c.input(2, 6, 3, 3)], "p")
    y = c.node("Flatten", [y], "f", axis=1)
    c.node("Gemm", [y, c.const("b", c.draw(5, 6)), c.const("c", c.draw(5))], transB=1)


@case("flatten_spatial_gemm", 13)
def _(c: Case):
    # The weight columns follow the order C, H, W of the flattened image.
    y = c.node("Flatten", [c.input(2, 3, 2, 4)], "f", axis=1)
    c.node("Gemm", [y, c.const("b", c.draw(5, 24)), c.const("c", c.draw(5))], transB=1)


# --- shapes -------------------------------------------------------------------------------------------------------------


@case("flatten", 9, 11, 13, 21, 23)
def _(c: Case):
    c.node("Flatten", [c.input(2, 3, 2, 4)])


@case("flatten_negative_axis", 13)
def _(c: Case):
    c.node("Flatten", [c.input(2, 3, 2, 4)], axis=-3)


@case("reshape_flatten", 9, 13, 19)
def _(c: Case):
    c.node("Reshape", [c.input(2, 3, 2, 4), c.ints("shape", [2, -1])])


@case("reshape_keep_batch", 14)
def _(c: Case):
    c.node("Reshape", [c.input(2, 3, 2, 4), c.ints("shape", [0, -1], node=True)])


@case("reshape_image_to_image", 13)
def _(c: Case):
    c.node("Reshape", [c.input(1, 4, 2, 3), c.ints("shape", [1, 2, 4, 3])])


@case("reshape_vector_to_image", 13)
def _(c: Case):
    c.node("Reshape", [c.input(2, 12), c.ints("shape", [2, 3, 2, 2])])


@case("transpose_nchw_to_nhwc", 9, 13, 21)
def _(c: Case):
    c.node("Transpose", [c.input(2, 3, 2, 4)], perm=[0, 2, 3, 1])


@case("transpose_nhwc_to_nchw", 13)
def _(c: Case):
    c.node("Transpose", [c.input(1, 2, 4, 3)], perm=[0, 3, 1, 2])


@case("transpose_nhwc_conv_nhwc", 13)
def _(c: Case):
    y = c.node("Transpose", [c.input(1, 4, 5, 3)], "t", perm=[0, 3, 1, 2])
    y = c.node("Conv", [y, c.const("w", c.draw(2, 3, 3, 3))], "v", pads=[1, 1, 1, 1])
    c.node("Transpose", [y], perm=[0, 2, 3, 1])


@case("transpose_hw", 13)
def _(c: Case):
    c.node("Transpose", [c.input(1, 3, 2, 4)], perm=[0, 1, 3, 2])


@case("transpose_matrix_default", 13)
def _(c: Case):
    c.node("Transpose", [c.input(3, 4)])


@case("pad_attribute", 9)
def _(c: Case):
    c.node("Pad", [c.input(1, 2, 3, 4)], mode="constant", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.0)


@case("pad_attribute_value", 9)
def _(c: Case):
    c.node("Pad", [c.input(1, 2, 3, 4)], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=1.5)


@case("pad_input", 11, 13, 19, 21)
def _(c: Case):
    c.node("Pad", [c.input(1, 2, 3, 4), c.ints("pads", [0, 0, 1, 2, 0, 0, 0, 1])])


@case("pad_input_value", 13)
def _(c: Case):
    pads, value = c.ints("pads", [0, 0, 1, 1, 0, 0, 1, 1], node=True), c.const("value", 0.5, np.float32, node=True)
    c.node("Pad", [c.input(1, 2, 3, 4), pads, value], mode="constant")


@case("pad_input_axes", 18)
def _(c: Case):
    c.node("Pad", [c.input(1, 2, 3, 4), c.ints("pads", [1, 0, 2, 1]), "", c.ints("axes", [2, 3])])


@case("pad_channels", 13)
def _(c: Case):
    c.node("Pad", [c.input(1, 2, 3, 4), c.ints("pads", [0, 1, 0, 0, 0, 2, 0, 0])])


@case("pad_conv", 13)
def _(c: Case):
    y = c.node("Pad", [c.input(1, 2, 5, 5), c.ints("pads", [0, 0, 0, 0, 0, 0, 1, 1])], "p")
    c.node("Conv", [y, c.const("w", c.draw(3, 2, 3, 3))], strides=[2, 2])


@case("squeeze_attribute", 9, 11)
def _(c: Case):
    c.node("Squeeze", [c.input(2, 3, 1, 1)], axes=[2, 3])


@case("squeeze_input", 13, 21)
def _(c: Case):
    c.node("Squeeze", [c.input(2, 3, 1, 1), c.ints("axes", [-2, -1])])


@case("squeeze_all", 13)
def _(c: Case):
    c.node("Squeeze", [c.input(2, 3, 1, 1)])


@case("unsqueeze_attribute", 9, 11)
def _(c: Case):
    c.node("Unsqueeze", [c.input(2, 3)], axes=[2, 3])


@case("unsqueeze_input", 13, 21)
def _(c: Case):
    c.node("Unsqueeze", [c.input(2, 3), c.ints("axes", [2, 3])])


# --- constants and the border -------------------------------------------------------------------------------------------


@case("constant_value_floats", 12)
def _(c: Case):
    c.nodes.append(helper.make_node("Constant", [], ["k"], name="/k/Constant", value_floats=[0.5, -0.25, 2.0, 1.0]))
    c.node("Add", [c.input(1, 3, 4, 4), "k"])


@case("constant_value_float", 13)
def _(c: Case):
    c.nodes.append(helper.make_node("Constant", [], ["k"], name="/k/Constant", value_float=0.75))
    c.node("Mul", [c.input(1, 3, 4, 4), "k"])


@case("constant_value_ints", 13)
def _(c: Case):
    c.nodes.append(helper.make_node("Constant", [], ["shape"], name="/shape/Constant", value_ints=[2, -1]))
    c.node("Reshape", [c.input(2, 3, 2, 2), "shape"])


@case("initializer_float_data", 13)
def _(c: Case):
    values = c.draw(2, 3, 1, 1)
    c.constants.append(helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel().tolist()))
    c.node("Conv", [c.input(1, 3, 3, 3), "w"])


@case("external_data", 13)
def _(c: Case):
    c.node("Conv", [c.input(1, 3, 5, 5), c.const("w", c.draw(4, 3, 3, 3)), c.const("b", c.draw(4))])


@case("shape_gather_flatten", 13)
def _(c: Case):
    # The idiom of x.view(x.size(0), -1) for a static batch.
    x = c.input(2, 3, 2, 2)
    batch = c.node("Gather", [c.node("Shape", [x], "s"), c.const("zero", 0, np.int64)], "g", axis=0)
    rows = c.node("Unsqueeze", [batch, c.ints("axes", [0])], "u")
    c.node("Reshape", [x, c.node("Concat", [rows, c.ints("rest", [-1])], "shape", axis=0)])


@case("softmax_default_axis", 9, 11, 13)
def _(c: Case):
    c.node("Softmax", [c.input(2, 10)])


@case("softmax_axis1", 11, 13)
def _(c: Case):
    c.node("Softmax", [c.input(2, 10, scale=4)], axis=1)


@case("softmax_image_channels", 13)
def _(c: Case):
    c.node("Softmax", [c.input(1, 5, 2, 2)], axis=1)


def build_case(name: str, opset: int, build) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    c = Case(name, opset)
    build(c)
    output = c.nodes[-1].output[0]
    draft = c.model({output: None})
    result = probe.session(draft).run([output], c.inputs)[0]
    model = c.model({output: result.shape})
    # Shape inference and onnxruntime disagree about a last pooling window that lies in the padding alone.
    onnx.checker.check_model(model, full_check="window_all_padding" not in name)
    return model, c.inputs, {output: result}


def disagreement(model: onnx.ModelProto, inputs: dict, outputs: dict) -> str | None:
    """How the ONNX reference evaluator differs, if it does.

    Its BatchNormalization before opset 14 normalises by the batch's own statistics, so that one is done here by formula.
    """
    if model.opset_import[0].version < 14 and model.graph.node[0].op_type == "BatchNormalization":
        node, known = model.graph.node[0], {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        scale, bias, mean, var = (known[n][:, None, None].astype(np.float64) for n in node.input[1:])
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        expected = (inputs["x"] - mean) / np.sqrt(var + epsilon) * scale + bias
        gap = float(np.abs(expected - next(iter(outputs.values()))).max())
        return f"differs from the formula by {gap:g}" if not gap < 1e-4 else None
    try:
        reference = ReferenceEvaluator(model).run(None, inputs)
    except Exception as error:  # the evaluator does not implement every attribute
        return f"reference evaluator failed: {error}"
    got = next(iter(outputs.values()))
    if reference[0].shape != got.shape:
        return f"shapes {got.shape} and {reference[0].shape}"
    gap = float(np.abs(reference[0] - got).max())
    return f"differs by {gap:g}" if not gap < 1e-4 else None


def save(model: onnx.ModelProto, folder: Path, name: str) -> None:
    if name.startswith("external_data"):
        (folder / f"{name}.bin").unlink(missing_ok=True)  # the writer appends
        onnx.save_model(
            model,
            folder / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.bin",
            size_threshold=0,
            convert_attribute=False,
        )
    else:
        onnx.save(model, folder / f"{name}.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests" / "data" / "onnx_ops")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, opset, build in CASES:
        try:
            model, inputs, outputs = build_case(name, opset, build)
        except Exception as error:
            raise SystemExit(f"{name}: {error}") from error
        if why := disagreement(model, inputs, outputs):
            print(f"{name}: {why}")
        save(model, args.out, name)
        np.savez(args.out / f"{name}.npz", **inputs, **outputs)
        total += sum((args.out / f"{name}.{ext}").stat().st_size for ext in ("onnx", "npz"))
    print(f"{len(CASES)} cases, {total} bytes")


if __name__ == "__main__":
    main()
