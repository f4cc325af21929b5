"""Exports a torchvision network, quantises it with onnxruntime to QDQ int8 and records onnxruntime's integers.

    python make_qdq.py --model resnet18 --out DIR [--image-size 64] [--images 4] [--activations u8,i8] [--layers] [--float-only]

Weights are random with a fixed seed; batch-norm statistics come from seeded random
images, so activations stay alive, and the classifier tells those images apart, so top-1 has a margin (not in squeezenet1_1,
which ends without a linear layer).
Written to DIR:

    inputs.npz             `image`, f32 [images, 3, H, W]; every run below takes one image at a time, batch 1
    float/model.onnx       the export, BatchNormalization kept as its own nodes
    float/expected.npz     `logits`, f32 [images, classes]
    KIND/model.onnx        QDQ, weights i8 symmetric per channel; KIND is the activations' type:
                           u8, i8 (with zero points), i8sym (i8, zero points 0)
    KIND/expected.npz      the integer result of every QuantizeLinear node under its output tensor's name, [images, ...], and `logits`
    KIND/layers/NNN.*      with --layers: every layer as a model of its own, see split_layers.py

onnxruntime runs on one thread, without graph optimisation: every node as its operator is defined.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torchvision.models import mobilenetv2, resnet

import probe
import split_layers

# Smallest image each network takes (vgg: its pooling to 7x7 can be exported only where it already is 7x7).
SMALLEST = {
    "resnet18": 32,
    "resnet34": 32,
    "resnet50": 32,
    "mobilenet_v2": 32,
    "squeezenet1_1": 32,
    "vgg11_bn": 224,
    "inception_v3": 75,
}
NATIVE = {"inception_v3": 299}
SCENES, LIFT = 16, 4.0
ACTIVATIONS = {"u8": (QuantType.QUInt8, False), "i8": (QuantType.QInt8, False), "i8sym": (QuantType.QInt8, True)}


def images(count: int, size: int, seed: int, noise_seed: int) -> np.ndarray:
    """f32 [count, 3, size, size], about zero mean and unit variance: the scenes of `seed` in turn, each time with new noise.

    A scene is made of random blobs of several sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.zeros(SCENES, 3, size, size)
    for cells in (2, 4, 8):
        coarse = torch.randn(SCENES, 3, cells, cells, generator=generator)
        scenes += 0.55 * nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    generator = torch.Generator().manual_seed(1000 * (seed + 1) + noise_seed)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return (scenes[torch.arange(count) % SCENES] + 0.25 * noise).numpy()


def build(name: str, size: int, seed: int) -> nn.Module:
    """The network in evaluation mode, with lively weights, measured batch-norm statistics and a classifier that tells scenes apart."""
    torch.manual_seed(seed)
    options = {"aux_logits": False, "transform_input": False, "init_weights": False} if name == "inception_v3" else {}
    net = getattr(torchvision.models, name)(weights=None, **options)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
            if m.bias is not None:
                nn.init.normal_(m.bias, 0, 0.05)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0, m.in_features**-0.5)
            nn.init.normal_(m.bias, 0, 0.05)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.0)
            nn.init.uniform_(m.bias, -0.3, 0.9)
            m.momentum = None  # the plain average over the batches below
    for m in net.modules():  # as in trained networks, a block changes its input a little: rounding is not amplified from block to block
        if isinstance(m, resnet.BasicBlock | resnet.Bottleneck):
            nn.init.uniform_((m.bn3 if isinstance(m, resnet.Bottleneck) else m.bn2).weight, 0.1, 0.5)
        elif isinstance(m, mobilenetv2.InvertedResidual) and m.use_res_connect:
            nn.init.uniform_(m.conv[-1].weight, 0.1, 0.5)
    net.eval()
    for m in norms:
        m.train()
    batches = torch.from_numpy(images(2 * SCENES, size, seed, 0)).split(4)
    with torch.no_grad():
        if norms:
            for batch in batches:
                net(batch)
        net.eval()
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]
        for linear in last:
            recognise_scenes(net, linear, batches)
    return net


def recognise_scenes(net: nn.Module, linear: nn.Linear, batches: list[torch.Tensor]) -> None:
    """Centres the classifier and lifts one class for each scene, so that top-1 has a margin as in a trained network."""
    features = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    logits = torch.cat([net(batch) for batch in batches])
    hook.remove()
    linear.bias -= logits.mean(0)
    mean = torch.cat(features).mean(0)
    centred = torch.cat(features).unflatten(0, (-1, SCENES)).mean(0) - mean
    classes = torch.randperm(linear.out_features)[:SCENES]
    # Ridge regression from the centred features of a scene to LIFT at its class.
    gram = centred @ centred.T
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(SCENES)
    lift = LIFT * torch.linalg.solve(gram + ridge, centred)
    linear.weight[classes] += lift
    linear.bias[classes] -= lift @ mean


def export(net: nn.Module, size: int, path: Path, opset: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            torch.zeros(1, 3, size, size),
            str(path),
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )


class Images(CalibrationDataReader):
    def __init__(self, array: np.ndarray):
        self.rest = [{"image": i[None]} for i in array]

    def get_next(self):
        return self.rest.pop(0) if self.rest else None


def quantise(source: Path, target: Path, kind: str, calibration: np.ndarray) -> None:
    element, symmetric = ACTIVATIONS[kind]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"  # batch norm folded, shapes inferred
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=element,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )


def record(model: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every QuantizeLinear result and the output, images along axis 0."""
    results = probe.run_exposed(onnx.load(model), [{"image": i[None]} for i in inputs])
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SMALLEST), default="resnet18")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, default=4, help="images to record")
    parser.add_argument("--calibration", type=int, default=16, help="images to calibrate on")
    parser.add_argument("--activations", default="u8,i8", help="a list of u8, i8, i8sym")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", action="store_true", help="also write every layer as a model")
    parser.add_argument("--float-only", action="store_true")
    args = parser.parse_args()
    size = args.image_size or NATIVE.get(args.model, 224)
    kinds = [] if args.float_only else args.activations.split(",")
    if size < SMALLEST[args.model]:
        parser.error(f"{args.model} needs --image-size {SMALLEST[args.model]} or more")
    if args.model == "vgg11_bn" and size != 224:
        parser.error("vgg11_bn needs --image-size 224")
    if unknown := set(kinds) - set(ACTIVATIONS):
        parser.error(f"--activations knows {', '.join(ACTIVATIONS)}, not {', '.join(sorted(unknown))}")

    torch.set_num_threads(1)
    for folder in ("float", *kinds):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    inputs = images(args.images, size, args.seed, 1)
    np.savez(args.out / "inputs.npz", image=inputs)
    plain = args.out / "float" / "model.onnx"
    export(build(args.model, size, args.seed), size, plain, args.opset)
    runner = probe.session(str(plain))
    logits = np.concatenate([runner.run(["logits"], {"image": i[None]})[0] for i in inputs])
    np.savez(args.out / "float" / "expected.npz", logits=logits)
    print(f"float: logits deviate by {logits.std():.3f}, top-1 {logits.argmax(1).tolist()}")
    calibration = images(args.calibration, size, args.seed, 2)
    for kind in kinds:
        target = args.out / kind / "model.onnx"
        quantise(plain, target, kind, calibration)
        tensors = record(target, inputs)
        np.savez(args.out / kind / "expected.npz", **tensors)
        if args.layers:
            layers = args.out / kind / "layers"
            shutil.rmtree(layers, ignore_errors=True)
            layers.mkdir()
            print(f"{kind}: {split_layers.split(onnx.load(target), tensors, layers)} layers")
        gap = np.abs(tensors["logits"] - logits).mean()
        constant = [n for n, v in tensors.items() if v.min() == v.max()]
        print(
            f"{kind}: {len(tensors) - 1} quantised tensors, top-1 {tensors['logits'].argmax(1).tolist()}, "
            f"mean distance from float {gap:.3f}" + (f", constant: {constant}" if constant else "")
        )


if __name__ == "__main__":
    main()
