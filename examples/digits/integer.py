"""Post-training quantisation of the digits network in numpy, in integers throughout.

Batch norm folded; weights symmetric per output channel; activations unsigned after ReLU; biases i32; the skip in 16 bits;
every change of scale is dyadic, round(acc * m / 2^e) with a 31-bit m, half up. Used to judge what training has produced.
"""

import math

import numpy as np
import torch
from torch import nn

from network import DigitsNet


def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d):
    """(weights [K, C, KH, KW], bias [K]) in f64 with the batch norm inside."""
    g = (bn.weight / torch.sqrt(bn.running_var.double() + bn.eps)).detach().double()
    w = conv.weight.detach().double() * g.view(-1, 1, 1, 1)
    return w.numpy(), (bn.bias.detach().double() - bn.running_mean.double() * g).numpy()


def dyadic(s: float) -> tuple[int, int]:
    f, x = math.frexp(s)
    m, e = math.floor(f * 2**31 + 0.5), 31 - x
    if m == 2**31:
        m, e = 2**30, e - 1
    return (m, e) if e <= 62 else (0, 1)


def requant(acc: np.ndarray, scales, lo: int, hi: int) -> np.ndarray:
    """`acc` is i64 [N, K, ...]; `scales` one number or one per channel."""
    pairs = [dyadic(float(s)) for s in np.atleast_1d(scales)]
    shape = (1, -1) + (1,) * (acc.ndim - 2)
    m = np.array([p[0] for p in pairs], dtype=np.int64).reshape(shape)
    e = np.array([p[1] for p in pairs], dtype=np.int64).reshape(shape)
    return np.clip((acc * m + (np.int64(1) << (e - 1))) >> e, lo, hi)


def range_of(x: np.ndarray, method: str, levels: int) -> float:
    """The upper end of the range of |x| that calibration keeps."""
    x = np.abs(x).ravel()
    top = float(x.max())
    if method == "minmax":
        return top
    if method == "percentile":
        return float(np.percentile(x, 99.9))
    best = min(
        (float(np.mean((np.clip(np.round(x / (c / levels)), 0, levels) * (c / levels) - x) ** 2)), c)
        for c in top * np.linspace(0.3, 1.0, 71)
    )
    return best[1]


class Quantised:
    """The integer network; `calibration` is f32 [N, 1, 8, 8]."""

    def __init__(self, net: DigitsNet, calibration: np.ndarray, bits_w: int, bits_a: int, method: str, correct: bool = False):
        self.bits_w, self.bits_a, self.method = bits_w, bits_a, method
        self.float_convs = {"conv1": fold(net.conv1, net.bn1)}
        for i, k in enumerate(net.blocks(), 1):
            self.float_convs[f"layer{i}.conv1"] = fold(k.conv1, k.bn1)
            self.float_convs[f"layer{i}.conv2"] = fold(k.conv2, k.bn2)
            if k.projects:
                self.float_convs[f"layer{i}.down"] = fold(k.down_conv, k.down_bn)
        self.float_convs["fc"] = (
            net.fc.weight.detach().double().numpy()[:, :, None, None],
            net.fc.bias.detach().double().numpy(),
        )
        self.stride = {f"layer{i}.{n}": k.conv1.stride[0] for i, k in enumerate(net.blocks(), 1) for n in ("conv1", "down")}
        seen: dict[str, np.ndarray] = {}
        self._run_float(calibration.astype(np.float64), seen)
        self._choose_scales(seen)
        self.weights = {}
        for name, (w, b) in self.float_convs.items():
            n = 2 ** (self._weight_bits(name) - 1) - 1
            s = np.maximum(np.abs(w).reshape(len(w), -1).max(1), 1e-12) / n
            q = np.round(w / s[:, None, None, None])
            if correct:  # E[float] - E[quantised weights] on the calibration images, per output channel
                x = seen[self._source(name)]
                error = _conv(x, w - q * s[:, None, None, None], self.stride.get(name, 1), name)
                b = b + error.mean(axis=(0, 2, 3))
            sx = self.scale[self._source(name)]
            self.weights[name] = (q, s, np.round(b / (s * sx)).astype(np.int64))

    def _weight_bits(self, name: str) -> int:
        return 8 if name in ("conv1", "fc") else self.bits_w

    def _source(self, name: str) -> str:
        if name == "conv1":
            return "input"
        if name == "fc":
            return "pooled"
        layer, part = name.split(".")
        return f"{layer}.mid" if part == "conv2" else f"{layer}.in"

    def _run_float(self, x: np.ndarray, seen: dict) -> np.ndarray:
        def conv(name, v):
            w, b = self.float_convs[name]
            return _conv(v, w, self.stride.get(name, 1), name) + b[None, :, None, None]

        seen["input"] = x
        skip = np.maximum(conv("conv1", x), 0)
        for i in (1, 2, 3):
            seen[f"layer{i}.in"] = skip
            mid = seen[f"layer{i}.mid"] = np.maximum(conv(f"layer{i}.conv1", skip), 0)
            y = conv(f"layer{i}.conv2", mid)
            skip = np.maximum(y + (conv(f"layer{i}.down", skip) if f"layer{i}.down" in self.float_convs else skip), 0)
        seen["last"] = skip
        seen["pooled"] = skip.mean(axis=(2, 3), keepdims=True)
        return conv("fc", seen["pooled"])[:, :, 0, 0]

    def _choose_scales(self, seen: dict) -> None:
        self.scale, self.skip_scale, self.top = {}, {}, {}
        for name, x in seen.items():
            # The input is not known to be non-negative, so it is signed.
            top = 127 if name == "input" else 255 if name in ("pooled", "last") else 2**self.bits_a - 1
            self.top[name] = top
            self.scale[name] = range_of(x, self.method, top) / top
            self.skip_scale[name] = float(x.max()) / 32767

    def logits(self, images: np.ndarray) -> np.ndarray:
        def conv(name, q):
            w, _, b = self.weights[name]
            acc = _conv(q, w, self.stride.get(name, 1), name).astype(np.int64)  # exact: far below 2^53
            acc = acc + b[None, :, None, None]
            assert np.abs(acc).max() < 2**31
            return acc

        def scales(name):
            return self.weights[name][1] * self.scale[self._source(name)]

        big = 2**31 - 1
        q = np.clip(np.round(images / np.float32(self.scale["input"])), -128, 127).astype(np.int64)
        skip = requant(conv("conv1", q), scales("conv1") / self.skip_scale["layer1.in"], 0, 32767)
        for i in (1, 2, 3):
            a, m, out = f"layer{i}.in", f"layer{i}.mid", f"layer{i + 1}.in" if i < 3 else "last"
            q = requant(skip, self.skip_scale[a] / self.scale[a], 0, self.top[a])
            mid = requant(conv(f"layer{i}.conv1", q), scales(f"layer{i}.conv1") / self.scale[m], 0, self.top[m])
            y = requant(conv(f"layer{i}.conv2", mid), scales(f"layer{i}.conv2") / self.skip_scale[out], -big, big)
            if f"layer{i}.down" in self.weights:
                z = requant(conv(f"layer{i}.down", q), scales(f"layer{i}.down") / self.skip_scale[out], -big, big)
            else:
                z = requant(skip, self.skip_scale[a] / self.skip_scale[out], -big, big)
            skip = np.clip(y + z, 0, 32767)
        q = requant(skip, self.skip_scale["last"] / self.scale["last"], 0, 255)
        area = q.shape[2] * q.shape[3]
        pooled = requant(q.sum(axis=(2, 3), keepdims=True), self.scale["last"] / (area * self.scale["pooled"]), 0, 255)
        return conv("fc", pooled)[:, :, 0, 0] * scales("fc")[None, :]


def _conv(x: np.ndarray, w: np.ndarray, stride: int, name: str) -> np.ndarray:
    padding = w.shape[2] // 2
    return nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64)), torch.from_numpy(w.astype(np.float64)), None, stride, padding
    ).numpy()
