"""One contender in a process of its own: `worker.py KIND MODEL IMAGE.f32 SIZE THREADS [--runtime LIBRARY]`.

Sets its CPUs, loads the model, runs it once, and writes one line of JSON: the fields of `Startup` in compare.py.
Then one line for each line of standard input:

    N       `wall` and `cpu`, the nanoseconds of N inferences each, after one that is not timed; `cpu` is the time that
            the process's threads were running
    did     what the contender executed, in words, asked of the contender itself

An inference takes the image as f32 NCHW in memory and ends with the logits as f32 in memory. `tract/` speaks the same.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np


def memory(field: str) -> int:
    """KiB, from /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))


def counted(names) -> str:
    return ", ".join(f"{n} {name}" for name, n in Counter(names).most_common(8))


class Hawqc:
    """A compiled model through the C interface (runtime/include/hawqc.h)."""

    def __init__(self, args):
        import ctypes

        class Buffer(ctypes.Structure):
            _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]

        class Options(ctypes.Structure):
            _fields_ = [("threads", ctypes.c_int64), ("parallel_for", ctypes.c_void_p), ("pool", ctypes.c_void_p)]

        self.ctypes, self.Buffer, self.Options = ctypes, Buffer, Options
        self.library = ctypes.CDLL(str(args.runtime.resolve()))
        for name in ("hawqc_version", "hawqc_last_error", "hawqc_model_manifest"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.version = self.library.hawqc_version().decode()

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(self.library.hawqc_last_error().decode())

    def load(self, args) -> None:
        self.model, self.session = self.ctypes.c_void_p(), self.ctypes.c_void_p()
        self.check(self.library.hawqc_model_open(os.fsencode(args.model), self.ctypes.byref(self.model)))
        options = self.Options(args.threads, None, None)
        self.check(
            self.library.hawqc_session_create(self.model, self.ctypes.byref(options), self.ctypes.byref(self.session))
        )

    def prepare(self, image: np.ndarray):
        logits, size = np.empty(1000, np.float32), self.ctypes.c_size_t
        taken = self.Buffer(image.ctypes.data, image.nbytes)
        given = self.Buffer(logits.ctypes.data, logits.nbytes)
        call = self.library.hawqc_session_run
        arguments = (self.session, 0, self.ctypes.byref(taken), size(1), self.ctypes.byref(given), size(1))

        def run():
            if status := call(*arguments):
                self.check(status)
            return logits

        return run

    def did(self) -> str:
        manifest = json.loads(self.library.hawqc_model_manifest(self.model))
        bits = counted(f"layers W{layer['weight_bits']}A{layer['activation_bits']}" for layer in manifest["layers"])
        kernels = counted(step["kernel"].split(".", 2)[-1] for step in manifest["steps"])
        return f"{bits}; integers only between the borders; target {manifest['target']}; {kernels}"


class OnnxRuntime:
    def __init__(self, args):
        import onnxruntime

        self.onnxruntime, self.version = onnxruntime, onnxruntime.__version__

    def options(self, threads: int):
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = self.onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return options

    def load(self, args) -> None:
        self.args = args
        self.session = self.onnxruntime.InferenceSession(
            str(args.model), self.options(args.threads), providers=["CPUExecutionProvider"]
        )

    def prepare(self, image: np.ndarray):
        feed, names = {self.session.get_inputs()[0].name: image}, [self.session.get_outputs()[0].name]
        return lambda: self.session.run(names, feed)[0]

    def did(self) -> str:
        """The operators after onnxruntime's own optimisation, which is where QDQ becomes integer arithmetic, or does not."""
        import tempfile

        import onnx

        with tempfile.TemporaryDirectory() as folder:
            options = self.options(1)
            options.optimized_model_filepath = f"{folder}/optimised.onnx"
            self.onnxruntime.InferenceSession(str(self.args.model), options, providers=["CPUExecutionProvider"])
            graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        return counted(node.op_type for node in graph.node)


class OpenVino:
    def __init__(self, args):
        import openvino

        self.openvino, self.version = openvino, openvino.__version__

    def load(self, args) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": args.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self.model = self.openvino.Core().compile_model(args.model, "CPU", settings)
        self.request = self.model.create_infer_request()

    def prepare(self, image: np.ndarray):
        self.request.set_input_tensor(self.openvino.Tensor(image, shared_memory=True))
        logits = self.request.get_output_tensor(0).data

        def run():
            self.request.infer()
            return logits

        return run

    def did(self) -> str:
        def said(node, what: str) -> str:
            value = node.get_rt_info()[what]
            return str(getattr(value, "value", value))

        ignored = {"Const", "Input", "Output", "Reshape"}
        nodes = [n for n in self.model.get_runtime_model().get_ops() if said(n, "layerType") not in ignored]
        return counted(f"{said(n, 'layerType')} {said(n, 'runtimePrecision')} {said(n, 'primitiveType')}" for n in nodes)


class Torch:
    """A traced and frozen module, engine x86."""

    def __init__(self, args):
        import torch

        self.torch, self.version = torch, torch.__version__
        torch.set_num_threads(args.threads)
        torch.set_num_interop_threads(1)
        torch.backends.quantized.engine = "x86"

    def load(self, args) -> None:
        self.module = self.torch.jit.load(args.model)

    def prepare(self, image: np.ndarray):
        tensor = self.torch.from_numpy(image)

        def run():
            with self.torch.inference_mode():
                return self.module(tensor).numpy().reshape(1, -1)

        return run

    def did(self) -> str:
        kinds = [node.kind() for node in self.module.inlined_graph.nodes()]
        return f"engine {self.torch.backends.quantized.engine}; " + counted(k for k in kinds if "Constant" not in k)


class TorchInductor(Torch):
    """A package of torch's ahead-of-time compiler."""

    def load(self, args) -> None:
        import torch._inductor.codecache  # aoti_load_package asks for it by name

        self.module = self.torch._inductor.aoti_load_package(str(args.model))

    def did(self) -> str:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as events:
            self.run()
        names = [event.name for event in events.events()]
        return "calls out of the compiled code: " + counted(n for n in names if "onednn" in n or "mkldnn" in n or "conv" in n)

    def prepare(self, image: np.ndarray):
        tensor = self.torch.from_numpy(image)

        def run():
            with self.torch.inference_mode():
                return self.module(tensor).numpy()

        self.run = run
        return run


class LiteRt:
    """The interpreter with its XNNPACK delegate, which it applies by itself."""

    def __init__(self, args):
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        self.Interpreter, self.version = Interpreter, ai_edge_litert.__version__

    def load(self, args) -> None:
        self.interpreter = self.Interpreter(str(args.model), num_threads=args.threads)
        self.interpreter.allocate_tensors()

    def prepare(self, image: np.ndarray):
        model = self.interpreter
        taken, given = model.get_input_details()[0], model.get_output_details()[0]
        if taken["dtype"] != np.float32 or given["dtype"] != np.float32:
            raise RuntimeError(f"the model takes {taken['dtype']} and gives {given['dtype']}, not f32")

        def run():
            model.set_tensor(taken["index"], image)
            model.invoke()
            return model.get_tensor(given["index"])

        return run

    def did(self) -> str:
        """With the delegate applied, what it left to the interpreter stays beside it in the execution plan."""
        details = self.interpreter._get_ops_details()
        types = {t["index"]: np.dtype(t["dtype"]).name for t in self.interpreter.get_tensor_details()}
        operators = counted(
            f"{op['op_name']} {types.get(op['outputs'][0], '')}" for op in details if op["op_name"] != "DELEGATE"
        )
        delegates = sum(op["op_name"] == "DELEGATE" for op in details)
        return f"{delegates} XNNPACK partitions over: {operators}"


class Ncnn:
    """Weights and arithmetic as the library chooses by default for a float model."""

    def __init__(self, args):
        import ncnn

        self.ncnn, self.version = ncnn, ncnn.__version__

    def load(self, args) -> None:
        self.net = self.ncnn.Net()
        self.net.opt.num_threads = args.threads
        self.net.opt.use_vulkan_compute = False
        if self.net.load_param(str(args.model)) or self.net.load_model(str(args.model.with_suffix(".bin"))):
            raise RuntimeError("the model does not load")

    def prepare(self, image: np.ndarray):
        mat = self.ncnn.Mat(image[0])
        taken, given = self.net.input_names()[0], self.net.output_names()[0]

        def run():
            extractor = self.net.create_extractor()
            extractor.input(taken, mat)
            status, logits = extractor.extract(given)
            if status:
                raise RuntimeError(f"extract gave {status}")
            return np.array(logits).reshape(1, -1)

        return run

    def did(self) -> str:
        o = self.net.opt
        return (
            f"float; defaults: fp16 storage {o.use_fp16_storage}, fp16 arithmetic {o.use_fp16_arithmetic}, "
            f"bf16 storage {o.use_bf16_storage}, winograd {o.use_winograd_convolution}"
        )


KINDS = {
    "hawqc": Hawqc,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "torch": Torch,
    "torch-inductor": TorchInductor,
    "litert": LiteRt,
    "ncnn": Ncnn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--runtime", type=Path, help="hawqc's runtime library")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    image = np.fromfile(args.image, np.float32).reshape(1, 3, args.size, args.size)
    baseline = memory("VmRSS")
    contender = KINDS[args.kind](args)
    imported = memory("VmRSS")
    start = time.perf_counter()
    contender.load(args)
    loaded = time.perf_counter()
    run = contender.prepare(image)
    logits = run()
    first = time.perf_counter()
    startup = {
        "version": contender.version,
        "load_ms": (loaded - start) * 1e3,
        "first_ms": (first - loaded) * 1e3,
        "baseline_kib": baseline,
        "imported_kib": imported,
        "peak_kib": memory("VmHWM"),
        "logits": np.asarray(logits, np.float64).ravel().tolist(),
    }
    print(json.dumps(startup), file=answers, flush=True)

    clock, busy = time.perf_counter_ns, time.process_time_ns
    for line in sys.stdin:
        if line.strip() == "did":
            answer = contender.did()
        else:
            run()
            answer = {"wall": [], "cpu": []}
            for _ in range(int(line)):
                begin, before = clock(), busy()
                run()
                answer["wall"].append(clock() - begin)
                answer["cpu"].append(busy() - before)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
