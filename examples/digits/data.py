"""The images: load, split, augment."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 2026
TEST, CALIBRATION = 450, 128


def load_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`train`, `calibration`, `test`: (images f32 [N, 1, 8, 8] = pixel / 16, labels i64 [N]), disjoint, each class in proportion."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=SEED)
    train, calibration = train_test_split(rest, test_size=CALIBRATION, stratify=labels[rest], random_state=SEED)
    split = {"train": train, "calibration": calibration, "test": test}
    return {name: (images[i], labels[i]) for name, i in split.items()}


def save(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(folder / f"{name}.npz", images=images, labels=labels)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random rotation, scale, shear and shift of each image, bilinear, then stroke strength and noise."""
    n = x.shape[0]

    def draw(limit):
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, shear, scale_x, scale_y = draw(0.22), draw(0.18), 1 + draw(0.13), 1 + draw(0.13)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Grid coordinates: one pixel is 2/8.
    theta = torch.stack(
        [
            torch.stack([cos * scale_x, (-sin + shear) * scale_x, draw(0.25)], 1),
            torch.stack([sin * scale_y, cos * scale_y, draw(0.20)], 1),
        ],
        1,
    )
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    y = torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    y = y * (1 + draw(0.15)).view(-1, 1, 1, 1) + 0.03 * torch.randn(x.shape, generator=generator)
    # A few untouched images keep the statistics those of real ones.
    keep = (torch.rand(n, generator=generator) < 0.25).view(-1, 1, 1, 1)
    return torch.where(keep, x, y.clamp(0, 1))
