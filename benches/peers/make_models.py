"""Makes the networks of the comparison, each quantised to int8 by every peer's own tool.

    python make_models.py --out DIR [--networks resnet18,...] [--only float,onnxruntime,...] [--again]

The networks are torchvision's with random weights of a fixed seed and measured batch-norm statistics
(`tools/python/make_qdq.py`, `build`); every tool calibrates on the same 32 images. Written to DIR/NETWORK:

    image.f32               the image that is timed, raw little-endian f32 [1, 3, H, W]
    calibration.npz         `images`, f32 [32, 3, H, W]
    float.onnx              the export of torch; batch norm kept as nodes
    ort-u8s8.onnx           onnxruntime: QDQ, activations u8, weights i8 per channel
    ort-s8s8.onnx           onnxruntime: QDQ, activations i8
    ort-qoperator.onnx      onnxruntime: QLinear* nodes, for tract
    ort-qlinear-u8s8.onnx   onnxruntime: QLinearConv nodes, all others of ONNX's own operators and float, for tract
    ort-qlinear-s8s8.onnx   the same, activations i8
    openvino-nncf.xml       NNCF on OpenVINO's import of float.onnx
    openvino-qdq.xml        OpenVINO's import of ort-u8s8.onnx
    torch-x86.pt            torch: FX quantisation, engine x86, traced and frozen
    torch-inductor-N.pt2    torch: PT2E quantisation, compiled ahead of time by Inductor for N threads
    litert.tflite           litert-torch, then ai-edge-quantizer's static int8 recipe
    ncnn.param, ncnn.bin    pnnx, float: the ncnn wheels contain no quantiser
    skipped.json            what could not be made, and why

A file that exists is not made again without --again. One contender's failure does not stop the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting in a loop is slow on a busy machine
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "python"))
NETWORKS = {"resnet18": 224, "resnet50": 224, "inception_v3": 299, "mobilenet_v2": 224}
SEED, CALIBRATION = 0, 32
THREADS = (1, 2)


class Source:
    """The float network of a folder and the images it is calibrated on; the torch module is built when asked for."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.size = name, folder, NETWORKS[name]
        self.module = None

    def torch(self):
        import make_qdq
        import torch

        if self.module is None:
            torch.set_num_threads(os.cpu_count())
            self.module = make_qdq.build(self.name, self.size, SEED).eval()
        return self.module

    def images(self) -> np.ndarray:
        return np.load(self.folder / "calibration.npz")["images"]

    def image(self) -> np.ndarray:
        return np.fromfile(self.folder / "image.f32", np.float32).reshape(1, 3, self.size, self.size)


def float_onnx(source: Source, target: Path) -> None:
    import make_qdq

    make_qdq.images(1, source.size, SEED, 1).tofile(source.folder / "image.f32")
    np.savez(source.folder / "calibration.npz", images=make_qdq.images(CALIBRATION, source.size, SEED, 2))
    make_qdq.export(source.torch(), source.size, target, 17)


def onnxruntime_qdq(kind: str) -> Callable[[Source, Path], None]:
    def make(source: Source, target: Path) -> None:
        import make_qdq

        make_qdq.quantise(source.folder / "float.onnx", target, kind, source.images())

    return make


# What stays integer among ONNX's own operators; onnxruntime quantises the others to operators of its own domain.
STANDARD = ["Conv", "Relu", "Clip", "MaxPool"]


def onnxruntime_qoperator(activations: str, operators: list[str] | None = None) -> Callable[[Source, Path], None]:
    """Nodes with integer operands; `operators` are quantised, all that can be without."""

    def make(source: Source, target: Path) -> None:
        import make_qdq
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source.folder / "float.onnx"), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                make_qdq.Images(source.images()),
                quant_format=QuantFormat.QOperator,
                op_types_to_quantize=operators,
                per_channel=True,
                activation_type=QuantType.from_string({"u8": "QUInt8", "i8": "QInt8"}[activations]),
                weight_type=QuantType.QInt8,
            )

    return make


def openvino_nncf(source: Source, target: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source.folder / "float.onnx")
    images = nncf.Dataset([i[None] for i in source.images()])
    openvino.save_model(nncf.quantize(model, images, subset_size=CALIBRATION), target, compress_to_fp16=False)


def openvino_qdq(source: Source, target: Path) -> None:
    import openvino

    model = openvino.convert_model(source.folder / "ort-u8s8.onnx")
    openvino.save_model(model, target, compress_to_fp16=False)


def torch_x86(source: Source, target: Path) -> None:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    image = torch.from_numpy(source.image())
    with torch.inference_mode(False), torch.no_grad():
        prepared = prepare_fx(source.torch(), get_default_qconfig_mapping("x86"), (image,))
        for i in source.images():
            prepared(torch.from_numpy(i[None]))
        traced = torch.jit.freeze(torch.jit.trace(convert_fx(prepared), image))
    torch.jit.save(traced, target)


def torch_inductor(threads: int) -> Callable[[Source, Path], None]:
    def make(source: Source, target: Path) -> None:
        import torch
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torch._inductor import aoti_compile_and_package, config
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        image = torch.from_numpy(source.image())
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        with torch.no_grad(), config.patch({"freezing": True, "cpp.threads": threads}):
            torch.set_num_threads(threads)
            prepared = prepare_pt2e(torch.export.export(source.torch(), (image,)).module(), quantizer)
            for i in source.images():
                prepared(torch.from_numpy(i[None]))
            exported = torch.export.export(convert_pt2e(prepared), (image,))
            aoti_compile_and_package(exported, package_path=str(target))

    return make


def litert(source: Source, target: Path) -> None:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.tflite"
        litert_torch.convert(source.torch(), (torch.from_numpy(source.image()),)).export(str(plain))
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):  # f32 there, as everywhere else
            manager.add_quantization_config(".*", border, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)
        quantiser = quantizer.Quantizer(str(plain), manager.get_quantization_recipe())
        (signature, parts), *_ = Interpreter(str(plain)).get_signature_list().items()
        images = [{parts["inputs"][0]: i[None]} for i in source.images()]
        statistics = quantiser.calibrate({signature: images}, num_threads=os.cpu_count())
        quantiser.quantize(statistics).export_model(str(target), overwrite=True)


def ncnn(source: Source, target: Path) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        with torch.no_grad():
            torch.jit.trace(source.torch(), torch.from_numpy(source.image())).save(f"{folder}/float.pt")
        command = [Path(sys.executable).with_name("pnnx"), "float.pt", f"inputshape=[1,3,{source.size},{source.size}]", "fp16=0"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        target.with_suffix(".bin").write_bytes(Path(folder, "float.ncnn.bin").read_bytes())
        target.write_bytes(Path(folder, "float.ncnn.param").read_bytes())


MAKERS: dict[str, Callable[[Source, Path], None]] = {
    "float.onnx": float_onnx,
    "ort-u8s8.onnx": onnxruntime_qdq("u8"),
    "ort-s8s8.onnx": onnxruntime_qdq("i8"),
    "ort-qoperator.onnx": onnxruntime_qoperator("u8"),
    "ort-qlinear-u8s8.onnx": onnxruntime_qoperator("u8", STANDARD),
    "ort-qlinear-s8s8.onnx": onnxruntime_qoperator("i8", STANDARD),
    "openvino-nncf.xml": openvino_nncf,
    "openvino-qdq.xml": openvino_qdq,
    "litert.tflite": litert,
    "ncnn.param": ncnn,
    "torch-x86.pt": torch_x86,
} | {f"torch-inductor-{n}.pt2": torch_inductor(n) for n in THREADS}


def make(name: str, folder: Path, only: list[str], again: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    skipped_file = folder / "skipped.json"
    skipped = json.loads(skipped_file.read_text()) if skipped_file.exists() else {}
    source = Source(name, folder)
    for file, maker in MAKERS.items():
        target = folder / file
        if (only and not any(file.startswith(o) for o in only)) or (target.exists() and not again):
            continue
        skipped.pop(file, None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                maker(source, target)
            print(f"{name}: {file}", flush=True)
        except Exception as error:  # a peer's tool may fail in any way; the reason is kept
            if file == "float.onnx":
                raise
            traceback.print_exc()
            skipped[file] = f"{type(error).__name__}: {str(error).strip()[:300]}"
            print(f"{name}: {file} skipped: {skipped[file]}", flush=True)
        skipped_file.write_text(json.dumps(skipped, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--only", default="", help="files whose name starts with one of these")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    for name in args.networks.split(","):
        if name not in NETWORKS:
            parser.error(f"--networks knows {', '.join(NETWORKS)}, not {name}")
        make(name, args.out / name, [o for o in args.only.split(",") if o], args.again)


if __name__ == "__main__":
    main()
