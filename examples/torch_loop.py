"""A training loop of your own: actprune only asks for the model, some inputs, and functions that you have already."""

import torch
import torch.nn.functional as F
from data import accuracy, batches
from torch import nn

import actprune as ap


def network():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def train(model, epochs, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)  # made after the cut: it holds the tensors
    model.train()
    for _ in range(epochs):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def main():
    torch.manual_seed(0)
    model = train(network(), epochs=3, lr=0.05)
    result = ap.prune(
        model, batches(), keep="macs=40%", evaluate=accuracy, finetune=lambda small: train(small, epochs=2, lr=0.01)
    )
    print(result.report)
    return result


if __name__ == "__main__":
    main()
