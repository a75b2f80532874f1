"""Character transformer
=====================

A small causal transformer that learns Python, character by character, from the standard library's own source. Its
embedding, attention, feed-forward and output layers are different role groups, and get different optimizers.
"""

import os
import sysconfig
from pathlib import Path

import torch
from torch import nn

import autoopt

STEPS = int(os.environ.get("EXAMPLE_STEPS", 250))
CONTEXT, WIDTH, BATCH = 64, 64, 16

# %%
# Data and model
# --------------

folder = Path(sysconfig.get_paths()["stdlib"])
names = ("argparse", "ast", "inspect", "typing", "ipaddress")
text = "".join((folder / f"{name}.py").read_text("utf-8") for name in names)
symbols = sorted(set(text))
ids = torch.tensor([symbols.index(character) for character in text])
train_ids, valid_ids = ids[: -len(ids) // 10], ids[-len(ids) // 10 :]
mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)


class CharacterModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbol = nn.Embedding(len(symbols), WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(symbols))

    def forward(self, tokens):
        hidden = self.symbol(tokens) + self.position.weight
        return self.head(self.body(hidden, mask=mask, is_causal=True))


def loss_of(model, data, starts):
    windows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


# %%
# Training
# --------
# The model of a run, its batches and the decay of the rate to zero are the same for both.


def train(make_optimizer):
    torch.manual_seed(0)
    model = CharacterModel()
    optimizer, scheduler = make_optimizer(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, train_ids, torch.randint(len(train_ids) - CONTEXT, (BATCH,))).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    model.eval()
    with torch.no_grad():
        return optimizer, loss_of(model, valid_ids, torch.arange(0, len(valid_ids) - CONTEXT - 1, CONTEXT)).item()


def adamw(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)


_, baseline_loss = train(adamw)
optimizer, loss = train(lambda model: (autoopt.select(model, total_steps=STEPS), None))

print(f"validation loss after {STEPS} steps, nats a character: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
