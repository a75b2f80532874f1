"""BERT under the Hugging Face Trainer
===================================

A small BERT, built from its configuration, sorts Reuters news of 1987 into 52 topics. The optimizer is handed to the
Trainer ready-made; the Trainer's own schedule, its clipping and its evaluation stay as they are.
"""

import os
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

import autoopt
from autoopt.tasks.text_data import load_corpus

STEPS = int(os.environ.get("EXAMPLE_STEPS", 150))
WORDS, LENGTH, BATCH = 4000, 48, 16
disable_progress_bar()

# %%
# Data and model
# --------------

corpus = load_corpus("reuters-r52-words")


def dataset(split, count):
    tokens = torch.from_numpy(split.padded(LENGTH, WORDS)[:count])
    labels = torch.from_numpy(split.labels[:count]).long()
    return [
        {"input_ids": row, "attention_mask": (row != 0).long(), "labels": label}
        for row, label in zip(tokens, labels, strict=True)
    ]


train_data, valid_data = dataset(corpus.train, 4000), dataset(corpus.valid, 300)


def classifier():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            num_labels=corpus.num_labels,
        )
    )


# %%
# Training
# --------
# The Trainer makes a scheduler, so ``select`` is told to leave rates to it: ``schedule=None``. The baseline is what
# the Trainer does by itself, AdamW, at 1e-3.


def train(optimizer_for, folder):
    model = classifier()
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=100,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=STEPS // 20,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=train_data,
        eval_dataset=valid_data,
        optimizers=(optimizer_for(model), None),
    )
    trainer.log = lambda *arguments, **options: None
    trainer.train()
    return trainer, trainer.evaluate()["eval_loss"]


with tempfile.TemporaryDirectory() as folder:
    _, baseline_loss = train(lambda model: None, folder)
    trainer, loss = train(lambda model: autoopt.select(model, total_steps=STEPS, schedule=None), folder)

# accelerate wraps the optimizer; what select returned is inside.
optimizer = trainer.optimizer.optimizer
print(f"validation loss after {STEPS} steps: Trainer's AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
