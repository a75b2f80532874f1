"""Tiny transformers, batches of tokens and a selector with changes of family, for the training stacks' tests."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it reports optional packages that are missing
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from synthetic_selector import synthetic_predictor

import autoopt

VOCABULARY, LENGTH, LABELS = 64, 16, 4
WARMUP, TOTAL = 4, 10
MOMENTS = {"in warm-up": WARMUP - 2, "at the switch": WARMUP, "a step after": WARMUP + 1}
"""Steps after which checkpoints are taken: the decision falls at the end of step `WARMUP`."""

CHANGES = {
    "matrix": {"optimizer": "soap", "lr": 1e-2},
    "qkv": {"optimizer": "adamw", "lr": 3e-3},
    "head": {"optimizer": "lion", "lr": 1e-3},
}


def select(model, **options):
    """Select with a selector that changes family or rate in every role group, so that the switch shows."""
    defaults = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": synthetic_predictor(changes=CHANGES)}
    return autoopt.select(model, **defaults | options)


def bert(seed=0):
    """A BERT classifier with two layers of width 32 and dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
            num_labels=LABELS,
        )
    )


def gpt2(seed=0):
    """A GPT-2 with two layers of width 32 and dropout; its head is tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


def examples(kind, count=96):
    """Examples as a Trainer's data set gives them: seeded tokens, with a label or with themselves."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    labels = tokens[:, 0] % LABELS if kind is bert else tokens
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
