"""Lightning
=========

One line in ``configure_optimizers``, and a callback that hands the report to the trainer's loggers and folder.
"""

import logging
import os
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autoopt
from autoopt.integrations.lightning import LogRecommendation

STEPS = int(os.environ.get("EXAMPLE_STEPS", 300))
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|no `val_dataloader`).*")

# %%
# Data and model
# --------------

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
data = TensorDataset(images, torch.tensor(labels))
train_data, valid_data = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))


class Digits(pl.LightningModule):
    def __init__(self, make_optimizer):
        super().__init__()
        self.make_optimizer = make_optimizer
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def training_step(self, batch, batch_index):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_index):
        images, labels = batch
        self.log("valid_loss", nn.functional.cross_entropy(self.network(images), labels))

    def configure_optimizers(self):
        return self.make_optimizer(self)


# %%
# Training
# --------
# ``estimated_stepping_batches`` is the number of optimizer steps, with epochs and accumulation counted in.


def selected(module):
    return autoopt.select(module, total_steps=int(module.trainer.estimated_stepping_batches))


def adamw(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    return [optimizer], [{"scheduler": decay, "interval": "step"}]


def train(make_optimizer, folder, callbacks=()):
    torch.manual_seed(0)
    module = Digits(make_optimizer)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(folder, name=None),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )
    loader = DataLoader(train_data, 32, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, loader)
    (scores,) = trainer.validate(module, DataLoader(valid_data, 297), verbose=False)
    return trainer, scores["valid_loss"]


with tempfile.TemporaryDirectory() as folder:
    _, baseline_loss = train(adamw, folder)
    trainer, loss = train(selected, folder, [LogRecommendation()])
    written = sorted(path.name for path in Path(trainer.log_dir).glob("autoopt.*"))

optimizer = trainer.optimizers[0]
print(f"validation loss after {STEPS} steps: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
print("written into the run's folder, beside TensorBoard's file:", ", ".join(written))
