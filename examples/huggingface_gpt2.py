"""GPT-2 and the Trainer's optimizer factory
=========================================

A small GPT-2, built from its configuration, learns the source of Python's standard library. The Trainer makes the
optimizer itself, by a factory, as it must where it also makes the model (``model_init``, hyper-parameter search).
"""

import os
import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from autoopt.integrations.folder import ReportFolder
from autoopt.integrations.huggingface import Select, total_steps

STEPS = int(os.environ.get("EXAMPLE_STEPS", 200))
CONTEXT, BATCH = 64, 8
disable_progress_bar()

# %%
# Data and model
# --------------

folder = Path(sysconfig.get_paths()["stdlib"])
text = "".join((folder / f"{name}.py").read_text("utf-8") for name in ("argparse", "ast", "inspect", "typing"))
symbols = sorted(set(text))
ids = torch.tensor([symbols.index(character) for character in text])
windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
examples = [{"input_ids": window, "labels": window} for window in windows]
train_data, valid_data = examples[: -len(examples) // 20], examples[-len(examples) // 20 :]


def language_model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(symbols), n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


# %%
# Training
# --------
# ``total_steps`` counts the steps that the arguments stand for, whether they say steps or epochs. The schedule is
# autoopt's own here, so the Trainer's is constant. The report is written where the run has its files.


def train(folder, **optimizer):
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant" if optimizer else "linear",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    if optimizer:
        optimizer["optimizer_cls_and_kwargs"][1]["total_steps"] = total_steps(arguments, train_data)
    trainer = Trainer(
        model_init=language_model, args=arguments, train_dataset=train_data, eval_dataset=valid_data, **optimizer
    )
    trainer.log = lambda *arguments, **options: None
    trainer.train()
    return trainer, trainer.evaluate()["eval_loss"]


with tempfile.TemporaryDirectory() as folder:
    _, baseline_loss = train(folder)
    options = {"callbacks": [ReportFolder(folder)]}
    trainer, loss = train(folder, optimizer_cls_and_kwargs=(Select, options))
    written = sorted(path.name for path in Path(folder).glob("autoopt.*"))

optimizer = trainer.optimizer.optimizer
print(f"validation loss after {STEPS} steps, nats a character: AdamW 1e-3 {baseline_loss:.3f}, autoopt {loss:.3f}")
print(optimizer.recommendation.headline)
print("written into the run's folder:", ", ".join(written))
