"""Small models of time series `(batch, length, channels)`: convolutional, dilated and recurrent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SeriesCnn(nn.Module):
    """Stages of 1-D convolution, BatchNorm and pooling, then the mean over time and a linear layer.

    The fully convolutional network of Wang et al. 2016 (arXiv 1611.06455), with pooling.
    """

    def __init__(self, channels: int, num_outputs: int, width: int, depth: int) -> None:
        """Build `depth` stages of the same width."""
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(depth):
            layers.append(nn.Conv1d(width if stage else channels, width, 5, padding=2, bias=False))
            layers.extend((nn.BatchNorm1d(width), nn.ReLU()))
            if stage < depth - 1:
                layers.append(nn.MaxPool1d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs `(batch, num_outputs)` for series `(batch, length, channels)`."""
        return self.head(self.body(x.transpose(1, 2)).mean(2))


class DilatedBlock(nn.Module):
    """A causal dilated convolution, then a pointwise one, with a shortcut."""

    def __init__(self, width: int, dilation: int) -> None:
        """Build the block."""
        super().__init__()
        self.reach = 2 * dilation
        self.dilated = nn.Conv1d(width, width, 3, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The features after this block, `(batch, width, length)` as they came."""
        y = functional.gelu(self.dilated(functional.pad(x, (self.reach, 0))))
        return x + self.pointwise(y)


class SeriesTcn(nn.Module):
    """A temporal convolutional network, read at the last step (Bai et al. 2018, arXiv 1803.01271)."""

    def __init__(self, channels: int, num_outputs: int, width: int, depth: int, pooled: bool) -> None:
        """Build `depth` blocks with dilations 1, 2, 4, ...; `pooled` reads the mean over time."""
        super().__init__()
        self.pooled = pooled
        self.stem = nn.Conv1d(channels, width, 1)
        self.blocks = nn.Sequential(*(DilatedBlock(width, 2**index) for index in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs `(batch, num_outputs)` for series `(batch, length, channels)`."""
        x = self.blocks(self.stem(x.transpose(1, 2)))
        return self.head(self.norm(x.mean(2) if self.pooled else x[:, :, -1]))


class SeriesRnn(nn.Module):
    """A GRU or LSTM, read at the last step or, where `pooled`, as the mean over time."""

    def __init__(self, cell: str, channels: int, num_outputs: int, width: int, depth: int, pooled: bool) -> None:
        """Build the model; `cell` is `"gru"` or `"lstm"`."""
        super().__init__()
        self.pooled = pooled
        network = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.recurrent = network(channels, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs `(batch, num_outputs)` for series `(batch, length, channels)`."""
        states = self.recurrent(x)[0]
        return self.head(states.mean(1) if self.pooled else states[:, -1])


def series_model(family: str, channels: int, num_outputs: int, width: int, depth: int, pooled: bool) -> nn.Module:
    """The model of a family: `"cnn1d"`, `"tcn"`, `"gru"` or `"lstm"`.

    Raises:
        KeyError: If the family is another.
    """
    if family == "cnn1d":
        return SeriesCnn(channels, num_outputs, width, depth)
    if family == "tcn":
        return SeriesTcn(channels, num_outputs, width, depth, pooled)
    return SeriesRnn(family, channels, num_outputs, width, depth, pooled)


def jitter(noise: float, generator: torch.Generator, series: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The series stretched in value by about a tenth each, with noise of deviation `noise`."""
    stretch = torch.exp(0.1 * torch.randn((len(series), 1, 1), generator=generator))
    return series * stretch + noise * torch.randn(series.shape, generator=generator), labels
