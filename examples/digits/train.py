"""Trains the digits network and writes digits.onnx, calibration.npz and test.npz beside this file.

    python train.py [--out DIR] [--float-epochs N] [--quant-epochs N]

Two phases. The first trains the float network. The second freezes the batch-norm statistics and minimises the loss of the
float network and of the same weights rounded to 4 bits together, so that post-training quantisation loses little; the
exported network is plain float. The test images are used once, for the table at the end.
"""

import argparse
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
from integer import Quantised
from network import DigitsNet, forward_quantised

BATCH = 64


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100.0 * float(np.mean(logits.argmax(1) == labels))


def train(net: DigitsNet, images: np.ndarray, labels: np.ndarray, epochs: int, rate: float, quantised: bool) -> None:
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(data.SEED + quantised)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    decayed = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate)
    steps = epochs * (len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: min(1.0, (t + 1) / 50) * 0.5 * (1 + math.cos(math.pi * min(t / steps, 1)))
    )
    net.train(not quantised)

    def clip() -> float:
        return 0.6 + 0.4 * float(torch.rand((), generator=generator))

    for epoch in range(epochs):
        order = torch.randperm(len(y), generator=generator)
        total = 0.0
        for i in range(0, len(y) - BATCH + 1, BATCH):
            pick = order[i : i + BATCH]
            batch, target = data.augment(x[pick], generator), y[pick]
            logits = net(batch)
            loss = loss_of(logits, target)
            if quantised:
                low = forward_quantised(net, batch, 4, clip)
                apart = nn.functional.kl_div(
                    low.log_softmax(1), logits.detach().log_softmax(1), reduction="batchmean", log_target=True
                )
                loss = loss + loss_of(low, target) + apart
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"  epoch {epoch + 1:3}/{epochs} loss {total / (len(y) // BATCH):.4f}", flush=True)


def float_logits(net: DigitsNet, images: np.ndarray) -> np.ndarray:
    net.eval()
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def export(net: DigitsNet, path: Path) -> None:
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PRESERVE with an evaluating network, and no folding: the BatchNormalization nodes stay.
        torch.onnx.export(
            net,
            torch.zeros(1, 1, 8, 8),
            str(path),
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )


def check_export(path: Path, images: np.ndarray, expected: np.ndarray) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    print(f"onnxruntime against torch on {len(images)} images: largest difference {np.abs(got - expected).max():.2e}")
    assert np.abs(got - expected).max() < 1e-3


def report(net: DigitsNet, splits: dict) -> None:
    (images, labels), calibration = splits["test"], splits["calibration"][0]
    print(f"\n{'test top-1':34}{'calib.':>10}{'test':>10}")
    held = splits["calibration"]
    print(f"{'float':34}{accuracy(float_logits(net, held[0]), held[1]):10.2f}{accuracy(float_logits(net, images), labels):10.2f}")
    for weights, activations in ((8, 8), (4, 8), (4, 4)):
        for method in ("minmax", "percentile", "mse"):
            for correct in (False, True):
                q = Quantised(net, calibration, weights, activations, method, correct)
                title = f"W{weights}A{activations} {method}{' bias-corrected' if correct else ''}"
                on_held, on_test = (accuracy(q.logits(i), y) for i, y in (held, (images, labels)))
                print(f"{title:34}{on_held:10.2f}{on_test:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--float-epochs", type=int, default=120)
    parser.add_argument("--quant-epochs", type=int, default=100)
    args = parser.parse_args()

    torch.manual_seed(data.SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    splits = data.load_splits()
    print(", ".join(f"{name} {len(labels)}" for name, (_, labels) in splits.items()))
    net = DigitsNet()
    print(f"{sum(p.numel() for p in net.parameters())} parameters")
    print("float network")
    train(net, *splits["train"], args.float_epochs, 2e-3, quantised=False)
    print("float and 4-bit together")
    train(net, *splits["train"], args.quant_epochs, 1e-3, quantised=True)

    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("calibration", "test"):
        data.save(args.out, name, *splits[name])
    export(net, args.out / "digits.onnx")
    check_export(args.out / "digits.onnx", splits["test"][0], float_logits(net, splits["test"][0]))
    report(net, splits)


if __name__ == "__main__":
    main()
