"""The digits network: a small residual network for 8x8 grey images.

In: f32 [N, 1, 8, 8], pixel / 16, so every value is a multiple of 1/16 in [0, 1].
Out: f32 [N, 10], logits.
"""

import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions with a skip; a strided or widening block projects the skip by a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.projects = stride != 1 or c_in != c_out
        if self.projects:
            self.down_conv = nn.Conv2d(c_in, c_out, 1, stride, 0, bias=False)
            self.down_bn = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        skip = self.down_bn(self.down_conv(x)) if self.projects else x
        return self.relu2(y + skip)


class DigitsNet(nn.Module):
    """8x8x32, 4x4x64, 2x2x96, global average, linear."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.layer1 = Block(32, 32, 1)
        self.layer2 = Block(32, 64, 2)
        self.layer3 = Block(64, 96, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(96, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))

    def blocks(self):
        return [self.layer1, self.layer2, self.layer3]


# --- the same network with quantisation simulated, for training ---------------------------------------------------------


class _Round(torch.autograd.Function):
    """Round in the forward pass, identity in the backward pass (straight-through)."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, g):
        return g


def fake_weight(w: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric per output channel. Batch norm scales whole output channels, so folding it does not change this grid."""
    n = 2 ** (bits - 1) - 1
    s = w.detach().abs().flatten(1).amax(1).clamp_min(1e-8).view(-1, *[1] * (w.dim() - 1)) / n
    return _Round.apply(w / s) * s


def fake_activation(x: torch.Tensor, bits: int, clip: float) -> torch.Tensor:
    """Unsigned, for values after ReLU; `clip` is the fraction of the batch's maximum that is kept."""
    n = 2**bits - 1
    s = (x.detach().amax() * clip / n).clamp_min(1e-8)
    return _Round.apply(torch.clamp(x / s, 0, n)) * s


def forward_quantised(net: DigitsNet, x, bits: int, clip) -> torch.Tensor:
    """Weights and activations at `bits`, first convolution and classifier at 8, the skip in full precision.

    `clip()` draws the clipping fraction of one activation.
    """

    def conv(c, v, b):
        return nn.functional.conv2d(v, fake_weight(c.weight, b), None, c.stride, c.padding)

    skip = net.relu(net.bn1(conv(net.conv1, x, 8)))
    for k in net.blocks():
        q = fake_activation(skip, bits, clip())
        y = fake_activation(k.relu1(k.bn1(conv(k.conv1, q, bits))), bits, clip())
        y = k.bn2(conv(k.conv2, y, bits))
        skip = k.relu2(y + (k.down_bn(conv(k.down_conv, q, bits)) if k.projects else skip))
    pooled = net.flatten(net.avgpool(fake_activation(skip, bits, clip())))
    return nn.functional.linear(fake_activation(pooled, 8, 1.0), fake_weight(net.fc.weight, 8), net.fc.bias)
