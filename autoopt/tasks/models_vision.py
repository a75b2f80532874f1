"""Small image classifiers: convolutional, residual, ConvNeXt, vision transformer and mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoopt.tasks.transformer import Block


def cnn(channels: int, num_outputs: int, width: int, depth: int, norm: bool = True) -> nn.Sequential:
    """A plain convolutional network: `depth` stages of 3x3 convolution, activation, 2x2 pooling.

    Maps `(batch, channels, height, width)` to `(batch, num_outputs)`. The channels double from
    stage to stage; the last stage is pooled to one position.

    Args:
        channels: Channels of the image.
        num_outputs: Size of the output.
        width: Channels of the first stage.
        depth: Number of stages.
        norm: Whether a BatchNorm follows each convolution.
    """
    layers: list[nn.Module] = []
    size = channels
    for stage in range(depth):
        out = width * 2**stage
        layers.append(nn.Conv2d(size, out, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU())
        layers.append(nn.MaxPool2d(2) if stage < depth - 1 else nn.AdaptiveAvgPool2d(1))
        size = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, num_outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        """Build the block; the shortcut is a 1x1 convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        same = channels == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, half as high and wide where the stride is 2."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(channels: int, size: int, num_outputs: int, width: int, depth: int) -> nn.Sequential:
    """A residual network of `depth` stages of one block each, halving the image between stages.

    Images of 16 pixels and more are halved by the stem already.
    """
    stride = 2 if size >= 16 else 1
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(depth):
        out = width * 2**stage
        layers.append(ResidualBlock(channels, out, 1 if stage == 0 else 2))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_outputs))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer norm, two pointwise layers, layer scale (arXiv 2201.03545)."""

    def __init__(self, width: int) -> None:
        """Build the block; the layer scale starts at 0.1, since the models are shallow."""
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """The features after this block, `(batch, width, height, width)` as they came."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.reduce(nn.functional.gelu(self.expand(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext(channels: int, size: int, num_outputs: int, width: int, depth: int) -> nn.Sequential:
    """A ConvNeXt: 4x4 patches of the image, `depth` blocks, the mean over positions, a layer norm."""
    return nn.Sequential(
        nn.Conv2d(channels, width, size // 4, size // 4),
        *(ConvNextBlock(width) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(width),
        nn.Linear(width, num_outputs),
    )


class VisionTransformer(nn.Module):
    """A pre-norm transformer over image patches (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

    def __init__(
        self,
        channels: int,
        size: int,
        patch: int,
        num_outputs: int,
        width: int,
        depth: int,
        attention: str = "split",
    ) -> None:
        """Build the model for square images of `size` pixels cut into square patches."""
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, max(1, width // 16), False, attention, True, False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the class token for images `(batch, channels, size, size)`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class MixerBlock(nn.Module):
    """A perceptron across positions, then one across channels (arXiv 2105.01601)."""

    def __init__(self, num_positions: int, width: int) -> None:
        """Build the two perceptrons, each with its layer norm."""
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = nn.Sequential(
            nn.Linear(num_positions, 2 * num_positions),
            nn.GELU(),
            nn.Linear(2 * num_positions, num_positions),
        )
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The features after this block, `(batch, num_positions, width)` as they came."""
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.channel_norm(x))


class Mixer(nn.Module):
    """An MLP-Mixer over image patches (Tolstikhin et al. 2021, arXiv 2105.01601)."""

    def __init__(self, channels: int, size: int, patch: int, num_outputs: int, width: int, depth: int) -> None:
        """Build the model for square images of `size` pixels cut into square patches."""
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((size // patch) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The logits for images `(batch, channels, size, size)`."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))
