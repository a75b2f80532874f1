"""accelerate
==========

The loop of accelerate's own guide, with accumulation and clipping: only the line that makes the optimizer differs.
"""

import os
import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autoopt
from autoopt.integrations import auto_optimizer_of

STEPS = int(os.environ.get("EXAMPLE_STEPS", 200))
ACCUMULATE, BATCH = 2, 16

# %%
# Data and model
# --------------

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
train_data, valid_data = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 128), nn.GELU(),
                         nn.Linear(128, 10))  # fmt: skip


# %%
# Training
# --------
# ``total_steps`` counts optimizer steps, not batches. A scheduler, where one is used, goes through ``prepare`` as
# well; here autoopt's own schedule takes its place.


def train(make_optimizer):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model = network()
    sampler = torch.utils.data.RandomSampler(
        train_data, num_samples=STEPS * ACCUMULATE * BATCH, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    optimizer, scheduler = make_optimizer(model)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, optimizer, DataLoader(train_data, BATCH, sampler=sampler), scheduler
    )
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        accelerator.load_state(folder)  # the plan travels with the optimizer's state
    inputs, targets = next(iter(DataLoader(valid_data, len(valid_data))))
    with torch.no_grad():
        return optimizer, nn.functional.cross_entropy(model(inputs), targets).item()


def adamw(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)


_, baseline_loss = train(adamw)
prepared, loss = train(lambda model: (autoopt.select(model, total_steps=STEPS), None))

# accelerate wraps the optimizer; this looks inside.
optimizer = auto_optimizer_of(prepared)
print(f"validation loss after {STEPS} steps: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
