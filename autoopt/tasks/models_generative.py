"""Small models that reconstruct, denoise or generate images, and coordinate networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoopt.tasks.models_mlp import mlp


class Autoencoder(nn.Module):
    """A fully connected autoencoder, mapping `(batch, ...)` to a reconstruction of the same shape."""

    def __init__(self, num_inputs: int, width: int, depth: int, code: int) -> None:
        """Build encoder and decoder of `depth` hidden layers each, with a narrow code between."""
        super().__init__()
        self.encoder = mlp(num_inputs, code, width, depth, "gelu")
        self.decoder = mlp(code, num_inputs, width, depth, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of `x`."""
        return self.decoder(self.encoder(x)).view(x.shape)


class ConvAutoencoder(nn.Module):
    """A convolutional autoencoder with strided and transposed convolutions, for even image sizes."""

    def __init__(self, channels: int, width: int) -> None:
        """Build two stages down and two up."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of `x`, `(batch, channels, size, size)`."""
        return self.body(x)


class VariationalAutoencoder(nn.Module):
    """A variational autoencoder of fully connected layers (Kingma and Welling 2013, arXiv 1312.6114)."""

    def __init__(self, num_inputs: int, width: int, depth: int, code: int) -> None:
        """Build an encoder to mean and log variance of the code, and a decoder to Bernoulli logits."""
        super().__init__()
        self.encoder = mlp(num_inputs, 2 * code, width, depth, "silu")
        self.decoder = mlp(code, num_inputs, width, depth, "silu")

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(batch, num_inputs)`, mean and log variance of the code, for unit noise of its shape."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + torch.exp(0.5 * log_variance) * noise), mean, log_variance


def time_features(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of times in [0, 1] at `width // 2` log-spaced frequencies, `(batch, width)`."""
    frequencies = torch.exp(torch.linspace(0.0, math.log(100.0), width // 2, device=time.device))
    angles = time[:, None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class MlpDenoiser(nn.Module):
    """A diffusion model's denoiser as a residual perceptron told the time by a shift in each block."""

    def __init__(self, num_inputs: int, width: int, depth: int) -> None:
        """Build `depth` blocks."""
        super().__init__()
        self.width = width
        self.stem = nn.Linear(num_inputs, width)
        self.time = nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, num_inputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The predicted noise, of the shape of `x`, at times `(batch,)` in [0, 1]."""
        condition = nn.functional.silu(self.time(time_features(time, self.width)))
        y = self.stem(x.flatten(1))
        for norm, shift, block in zip(self.norms, self.shifts, self.blocks, strict=True):
            y = y + block(norm(y) + shift(condition))
        return self.head(y).view(x.shape)


class ConvDenoiser(nn.Module):
    """A diffusion model's denoiser as a small U-Net with one halving and GroupNorm (arXiv 2006.11239)."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        """Build the model with `depth` blocks at half size; `width` is a multiple of 8."""
        super().__init__()
        self.width = width
        inner = 2 * width
        self.time = nn.Linear(width, inner)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, inner, 3, 2, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, inner) for _ in range(depth))
        self.blocks = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in range(depth))
        self.up = nn.ConvTranspose2d(inner, width, 2, 2)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.head = nn.Conv2d(2 * width, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The predicted noise, of the shape of `x`, at times `(batch,)` in [0, 1]."""
        condition = self.time(time_features(time, self.width))[:, :, None, None]
        full = nn.functional.silu(self.stem(x))
        y = self.down(full)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            y = y + block(nn.functional.silu(norm(y) + condition))
        return self.head(nn.functional.silu(self.norm(torch.cat([full, self.up(y)], dim=1))))


class Siren(nn.Module):
    """A perceptron with sine activations over coordinates (Sitzmann et al. 2020, arXiv 2006.09661)."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int, depth: int) -> None:
        """Build the model with the paper's initialisation and frequency of 30."""
        super().__init__()
        sizes = [num_inputs, *[width] * depth]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Linear(width, num_outputs)
        for index, layer in enumerate(layers):
            bound = math.sqrt(6 / layer.in_features) / 30 if index else 1 / layer.in_features
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """The signal's values `(batch, num_outputs)` at coordinates `(batch, num_inputs)` in [-1, 1]."""
        for layer in self.hidden:
            x = torch.sin(30 * layer(x))
        return self.head(x)
