"""A model of timm: pruned in its own class, fine-tuned, and folded for deployment."""

import timm
import torch
import torch.nn.functional as F
from data import batches

import actprune as ap

FORM = {"channels": 3, "size": 32}


def accuracy(model):
    pairs = batches(128, seed=1, **FORM)
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in pairs) / 128


def main():
    torch.manual_seed(0)
    loader = batches(256, **FORM)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=4)  # pretrained=True where you are online
    model = ap.SGD(loader, loss=F.cross_entropy, lr=0.05, epochs=2)(model).eval()
    tune = ap.SGD(loader, loss=F.cross_entropy, lr=0.02, epochs=1)
    result = ap.prune(model, loader, keep="units=60%", method="l2", evaluate=accuracy, finetune=tune)
    deployed = result.fold(channels_last=False)
    print(result.report, sum(p.numel() for p in deployed.parameters()))
    return result


if __name__ == "__main__":
    main()
