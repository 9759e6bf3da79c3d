"""A Lightning module is a torch module: it is pruned as it is, and its own Trainer fine-tunes it."""

import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from data import accuracy, batches
from torch import nn
from torch.utils.data import DataLoader

import actprune as ap
from actprune.callbacks import lightning_callback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),
            nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(model, epochs, **more):
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **more,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a loader without workers
        trainer.fit(model, DataLoader(batches(), batch_size=None))  # which are batches already
    model.trainer = None  # the model is plain again, and can be copied
    return model.eval()


def main():
    torch.manual_seed(0)
    model = fit(Classifier(), epochs=3)
    result = ap.prune(
        model, batches(), keep="macs=50%", method="flap", evaluate=accuracy,
        finetune=lambda small: fit(small, 1, callbacks=[lightning_callback(model)]),  # the dense one teaches
    )  # fmt: skip
    print(result.report)
    return result


if __name__ == "__main__":
    main()
