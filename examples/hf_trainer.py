"""The Trainer of Hugging Face as the fine-tune, and a folder that stock transformers loads."""

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import actprune as ap
from actprune.callbacks import trainer_callback


def data(count, seed):
    """Is token 3 in the sequence?"""
    x = torch.randint(0, 16, (count, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": label} for row, label in zip(x, (x == 3).any(1).long(), strict=True)]


def train(model, epochs=2, **more):
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=2e-3, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=data(512, seed=0), **more).train()
    return model.eval()


def accuracy(model):
    rows = data(256, seed=1)
    with torch.no_grad():
        logits = model(torch.stack([row["input_ids"] for row in rows])).logits
    return (logits.argmax(1) == torch.stack([row["labels"] for row in rows])).float().mean().item()


def main(folder=None):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16,
    )  # fmt: skip
    model = train(BertForSequenceClassification(config))
    tokens = torch.stack([row["input_ids"] for row in data(256, seed=0)])
    result = ap.prune(
        model,
        [{"input_ids": x} for x in tokens.split(32)],
        keep="units=50%",
        method="flap",
        equal_widths=True,  # a configuration has one number for all layers of a kind,
        protect=["*attention*", "*pooler*"],  # and none for the heads of BERT, which are hidden size / heads
        evaluate=accuracy,
        finetune=lambda small: train(small, epochs=1, callbacks=[trainer_callback(model)]),  # the dense one teaches
    )
    with tempfile.TemporaryDirectory() as place:
        saved = result.save_pretrained(folder or Path(place) / "pruned")
        again = BertForSequenceClassification.from_pretrained(saved)  # no actprune needed
    print(result.report, again.config.intermediate_size)
    return result


if __name__ == "__main__":
    main()
