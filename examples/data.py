"""Data of the examples: images with a bright bar, whose column is the class."""

import torch


def images(count, seed=0, channels=1, size=8):
    """(count, channels, size, size) float32 and (count,) classes 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = 0.5 * torch.randn(count, channels, size, size, generator=generator)
    for k in range(size // 8):
        x[torch.arange(count), :, :, y * size // 4 + k] += 1.5
    return x, y


def batches(count=512, seed=0, **form):
    x, y = images(count, seed, **form)
    return list(zip(x.split(32), y.split(32), strict=True))


def accuracy(model):
    """On images that neither training nor calibration sees; the validation data of the examples."""
    x, y = images(256, seed=1)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()
