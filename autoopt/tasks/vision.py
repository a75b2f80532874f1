"""Image classification: digits by class, photo patches by where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from autoopt.tasks.base import Task, TaskInstance
from autoopt.tasks.data import seeded
from autoopt.tasks.models_mlp import ResMlp, mlp
from autoopt.tasks.models_vision import Mixer, VisionTransformer, cnn, convnext, resnet
from autoopt.tasks.spec import Spec, cross_entropy, from_rows
from autoopt.tasks.vision_data import REQUIRES, augment, images_of

# Convolutional networks on MNIST-5k are left to the demo, whose family and source are recorded
# nowhere else.
SPECS = (
    Spec("mlp", "mnist-5k", 64, 64, 400),
    Spec("mlp", "mnist-5k", 256, 128, 300),
    Spec("mlp", "mnist-5k", 128, 8, 1500),
    Spec("mlp", "digits", 32, 16, 400),
    Spec("mlp", "digits", 64, 4, 3000),
    Spec("mlp-norm", "mnist-5k", 128, 256, 200, variant="batch"),
    Spec("mlp-norm", "mnist-5k", 64, 32, 600, variant="layer"),
    Spec("mlp-norm", "digits", 64, 32, 400, variant="layer"),
    Spec("deep-tanh", "mnist-5k", 64, 64, 500, depth=8),
    Spec("deep-tanh", "digits", 32, 32, 800, depth=6),
    Spec("resmlp", "mnist-5k", 64, 64, 400, depth=3),
    Spec("resmlp", "photo-patches", 128, 128, 300, depth=2),
    Spec("cnn", "digits", 16, 16, 400, depth=2),
    Spec("cnn", "digits", 32, 64, 300, depth=2, variant="plain"),
    Spec("cnn", "photo-patches", 16, 32, 300, depth=3),
    Spec("cnn", "photo-patches", 12, 128, 150, depth=3, variant="plain"),
    Spec("resnet", "digits", 16, 32, 300, depth=2),
    Spec("resnet", "photo-patches", 16, 64, 200, depth=2),
    Spec("resnet", "photo-patches", 32, 16, 300, depth=2),
    Spec("convnext", "digits", 32, 32, 300),
    Spec("convnext", "photo-patches", 32, 64, 300),
    Spec("convnext", "photo-patches", 64, 16, 400),
    Spec("vit", "mnist-5k", 32, 32, 400),
    Spec("vit", "mnist-5k", 64, 32, 250, variant="fused"),
    Spec("vit", "photo-patches", 48, 48, 300),
    Spec("vit", "digits", 32, 64, 300, variant="fused"),
    Spec("mixer", "mnist-5k", 32, 64, 400),
    Spec("mixer", "photo-patches", 64, 32, 300),
    Spec("mixer", "digits", 16, 16, 600),
    # Narrow models, and other batch sizes and horizons, are cheap to record.
    Spec("mlp", "digits", 256, 256, 150),
    Spec("mlp", "mnist-5k", 16, 512, 400),
    Spec("mlp-norm", "digits", 8, 64, 600, variant="batch"),
    Spec("mlp-norm", "digits", 128, 8, 800, variant="batch"),
    Spec("mlp-norm", "mnist-5k", 16, 16, 1000, variant="layer"),
    Spec("deep-tanh", "digits", 8, 16, 1200, depth=6),
    Spec("deep-tanh", "digits", 128, 128, 200, depth=4),
    Spec("resmlp", "digits", 8, 32, 800),
    Spec("resmlp", "digits", 64, 8, 600),
    Spec("cnn", "digits", 4, 32, 500),
    Spec("cnn", "digits", 64, 16, 200),
    Spec("mixer", "digits", 4, 64, 400),
    Spec("convnext", "digits", 8, 16, 300),
    Spec("resnet", "digits", 8, 8, 400),
    # Wide models, shallow for the price of it, tell whether rates hold over the width.
    Spec("mlp", "digits", 512, 32, 250, depth=1),
    Spec("mlp", "mnist-5k", 512, 64, 100, depth=2),
    Spec("mlp-norm", "digits", 512, 64, 150, variant="batch"),
    Spec("resmlp", "digits", 16, 8, 3000, depth=1),
    Spec("vit", "photo-patches", 192, 32, 400, depth=6, evaluation_only=True),
    Spec("mixer", "mnist-5k", 256, 64, 400, depth=8, evaluation_only=True),
    Spec("resnet", "photo-patches", 64, 32, 300, depth=3, evaluation_only=True),
)

_DEMO = Spec("cnn", "mnist-5k", 32, 64, 600, depth=3)


def tasks() -> Iterator[Task]:
    """The image classification tasks, the demo's among them."""
    for spec in SPECS:
        yield spec.task(build, "vision", REQUIRES[spec.source])
    yield replace(_DEMO.task(build, "vision", REQUIRES[_DEMO.source]), name="demo-mnist-cnn", demo=True)


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of an image classification task; every source has ten classes."""
    images, labels, *validation = images_of(spec.source)
    model = seeded(_model, seed, spec, images.shape[1], images.shape[2], 10)
    return from_rows(model, cross_entropy, (images, labels), validation, spec.batch_size, seed, augment(spec.source))


def _model(spec: Spec, channels: int, size: int, num_outputs: int) -> nn.Module:
    """The freshly initialised model of a task, for square images."""
    pixels = channels * size * size
    patch = {8: 2, 16: 4, 28: 7}[size]
    width, depth = spec.width, spec.depth
    attention = spec.variant or "split"
    makers: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: mlp(pixels, num_outputs, width, depth),
        "mlp-norm": lambda: mlp(pixels, num_outputs, width, depth, norm=spec.variant),
        "deep-tanh": lambda: mlp(pixels, num_outputs, width, depth, "tanh"),
        "resmlp": lambda: ResMlp(pixels, num_outputs, width, depth),
        "cnn": lambda: cnn(channels, num_outputs, width, depth, norm=spec.variant != "plain"),
        "resnet": lambda: resnet(channels, size, num_outputs, width, depth),
        "convnext": lambda: convnext(channels, size, num_outputs, width, depth),
        "vit": lambda: VisionTransformer(channels, size, patch, num_outputs, width, depth, attention),
        "mixer": lambda: Mixer(channels, size, patch, num_outputs, width, depth),
    }
    return makers[spec.family]()
