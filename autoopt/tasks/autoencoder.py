"""Reconstruction and generation of images: autoencoders, diffusion, implicit representation."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.data import seeded, split
from autoopt.tasks.models_generative import (
    Autoencoder,
    ConvAutoencoder,
    ConvDenoiser,
    MlpDenoiser,
    Siren,
    VariationalAutoencoder,
)
from autoopt.tasks.spec import VALIDATION_SEED, Spec, from_rows, mean_squared_error
from autoopt.tasks.vision_data import REQUIRES, images_of, photos

SPECS = (
    Spec("autoencoder", "mnist-5k", 128, 64, 400, depth=1),
    Spec("autoencoder", "digits", 32, 32, 600, depth=2),
    Spec("autoencoder", "mnist-5k", 256, 256, 150, depth=1, variant="denoising"),
    Spec("autoencoder", "photo-patches", 64, 16, 800, depth=1, variant="denoising"),
    Spec("autoencoder", "photo-patches", 16, 32, 300, variant="conv"),
    Spec("autoencoder", "mnist-5k", 8, 32, 250, variant="conv"),
    Spec("vae", "mnist-5k", 128, 64, 400, depth=1),
    Spec("vae", "digits", 64, 16, 800, depth=1),
    Spec("diffusion", "digits", 64, 128, 500),
    Spec("diffusion", "mnist-5k", 128, 64, 400),
    Spec("diffusion", "photo-patches", 16, 32, 250, variant="conv"),
    Spec("diffusion", "digits", 32, 32, 400, variant="conv"),
    Spec("siren", "photo-china", 64, 512, 400),
    Spec("siren", "photo-flower", 128, 256, 300, depth=3),
    Spec("siren", "photo-flower", 32, 128, 1000),
    Spec("autoencoder", "digits", 8, 8, 1200, depth=2),
    Spec("vae", "digits", 16, 64, 500, depth=1),
    Spec("vae", "mnist-5k", 32, 32, 500, depth=1),
    Spec("diffusion", "digits", 8, 32, 800),
    Spec("siren", "photo-china", 8, 256, 800),
    Spec("siren", "photo-china", 32, 64, 2000),
    Spec("vae", "digits", 512, 64, 250, depth=1),
    Spec("autoencoder", "digits", 512, 32, 200, depth=1),
    Spec("autoencoder", "digits", 16, 16, 3000, depth=1),
    Spec("diffusion", "photo-patches", 64, 16, 400, depth=6, variant="conv", evaluation_only=True),
    Spec("autoencoder", "mnist-5k", 1024, 64, 300, depth=2, evaluation_only=True),
)

PHOTOS = ("photo-china", "photo-flower")
CODE = 16
"""Size of the code of an autoencoder."""


def tasks() -> Iterator[Task]:
    """The reconstruction and generation tasks."""
    for spec in SPECS:
        yield spec.task(build, "vision", REQUIRES.get(spec.source, ("sklearn",)))


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of a reconstruction or generation task."""
    if spec.family == "siren":
        model = seeded(Siren, seed, 2, 3, spec.width, spec.depth)
        train, held_out = _pixels(PHOTOS.index(spec.source))
        return from_rows(model, mean_squared_error, train, held_out, spec.batch_size, seed)
    images, _, clean, _ = images_of(spec.source)
    if spec.family == "vae":
        images, clean = _unit_range(images), _unit_range(clean)
        transform, loss_fn = _with_code_noise, vae_loss
    elif spec.family == "diffusion":
        transform = diffuse
        loss_fn = noise_loss if spec.variant == "conv" else image_loss
    else:
        transform = functools.partial(_corrupt, 0.8 if spec.variant else 0.0)
        loss_fn = mean_squared_error
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    validation = transform(generator, clean)
    model = seeded(_model, seed, spec, images.shape[1], images.shape[2])
    return from_rows(model, loss_fn, (images,), validation, spec.batch_size, seed, transform)


def diffuse(generator: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy images, their times in [0, 1], the noise and the images (schedule of arXiv 2102.09672)."""
    noise = torch.randn(images.shape, generator=generator)
    time = torch.rand(len(images), generator=generator)
    angle = (time * math.pi / 2).view(-1, 1, 1, 1)
    return torch.cos(angle) * images + torch.sin(angle) * noise, time, noise, images


def noise_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of the predicted noise, whose variance is 1."""
    noisy, time, noise, _ = batch
    return functional.mse_loss(model(noisy, time), noise)


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of the predicted clean image, whose variance is 1.

    For models that are narrower than an image, through which no white noise would pass.
    """
    noisy, time, _, images = batch
    return functional.mse_loss(model(noisy, time), images)


def vae_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The negative evidence lower bound in nats per pixel, for pixels read as Bernoulli rates."""
    images, noise = batch
    logits, mean, log_variance = model(images, noise)
    pixels = images.flatten(1)
    reconstruction = functional.binary_cross_entropy_with_logits(logits, pixels)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return reconstruction + divergence / pixels.shape[1]


def _with_code_noise(generator: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images and the noise by which their codes are sampled."""
    return images, torch.randn((len(images), CODE), generator=generator)


def _corrupt(deviation: float, generator: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images with noise of a deviation, and what they were."""
    return images + deviation * torch.randn(images.shape, generator=generator), images


def _unit_range(images: Tensor) -> Tensor:
    """Standardised images brought to [0, 1], by the limits that hold for nearly all pixels."""
    return ((images + 0.5) / 3.5).clamp(0, 1)


@functools.lru_cache(maxsize=2)
def _pixels(index: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Coordinates in [-1, 1] and standardised colours of a photograph's training and other pixels.

    The photograph is shrunk to a quarter of its size; a pixel in eight validates.
    """
    small = functional.avg_pool2d(photos()[index : index + 1], 4)[0]
    height, width = small.shape[1:]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    where = torch.stack([rows, columns], dim=-1).view(-1, 2)
    colours = small.permute(1, 2, 0).reshape(-1, 3)
    train, held_out = split(len(where), len(where) // 8)
    colours = (colours - colours[train].mean()) / colours[train].std()
    return (where[train], colours[train]), (where[held_out], colours[held_out])


def _model(spec: Spec, channels: int, size: int) -> nn.Module:
    """The freshly initialised model of a task on square images."""
    pixels = channels * size * size
    if spec.family == "vae":
        return VariationalAutoencoder(pixels, spec.width, spec.depth, CODE)
    if spec.family == "diffusion":
        if spec.variant == "conv":
            return ConvDenoiser(channels, spec.width, spec.depth)
        return MlpDenoiser(pixels, spec.width, spec.depth)
    if spec.variant == "conv":
        return ConvAutoencoder(channels, spec.width)
    return Autoencoder(pixels, spec.width, spec.depth, CODE)
