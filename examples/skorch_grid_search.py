"""skorch and scikit-learn
=======================

A neural net inside a scikit-learn pipeline, searched over and pickled like any other estimator. ``SelectedClassifier``
is skorch's classifier with ``autoopt.select`` for its optimizer; there is no learning rate to search for.
"""

import os
import pickle

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from autoopt.integrations.skorch import SelectedClassifier

STEPS = int(os.environ.get("EXAMPLE_STEPS", 180))
BATCH = 64

# %%
# Data and model
# --------------

images, labels = load_digits(return_X_y=True)
parts = train_test_split(images.astype(np.float32), labels.astype(np.int64), random_state=0)
train_images, valid_images, train_labels, valid_labels = parts


class Network(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, inputs):
        return self.head(self.layers(inputs))


# %%
# Training
# --------
# ``fit`` knows the number of steps of each fold. Arguments of ``select`` have the prefix ``optimizer__``.

steps_per_epoch = -(-len(train_images) // BATCH)
settings = {
    "criterion": nn.CrossEntropyLoss,
    "max_epochs": max(1, round(STEPS / steps_per_epoch)),
    "batch_size": BATCH,
    "train_split": None,
    "verbose": 0,
}


def search(net):
    torch.manual_seed(0)
    pipeline = make_pipeline(StandardScaler(), net)
    name = pipeline.steps[-1][0]
    grid = GridSearchCV(pipeline, {f"{name}__module__width": [16, 64]}, cv=3, scoring="neg_log_loss")
    return grid.fit(train_images, train_labels)


baseline = search(NeuralNetClassifier(Network, optimizer=torch.optim.AdamW, lr=1e-3, **settings))
found = search(SelectedClassifier(Network, optimizer__warmup_steps=10, **settings))
found = pickle.loads(pickle.dumps(found))

baseline_loss, loss = (log_loss(valid_labels, each.predict_proba(valid_images)) for each in (baseline, found))
optimizer = found.best_estimator_[-1].optimizer_
print(f"validation loss of the best of {len(found.cv_results_['params'])}: AdamW 1e-3 {baseline_loss:.3f}, ", end="")
print(f"autoopt {loss:.3f}")
print(found.best_params_)
print(optimizer.recommendation.headline)
