"""From a pruned network to a server: export once, and only numpy and onnxruntime at work."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from data import batches, images
from torch_loop import network, train

import actprune as ap
from actprune.artifacts.export import export


class Server:
    """Answers requests of any number of images."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        (logits,) = self.session.run(None, {self.name: pixels})
        return logits.argmax(1)


def main():
    torch.manual_seed(0)
    loader = batches()
    result = ap.prune(train(network(), epochs=3, lr=0.05), loader, keep="macs=50%", method="flap", round_to=4)
    deployed = result.fold(channels_last=False)  # without BatchNorm
    with tempfile.TemporaryDirectory() as place:
        server = Server(
            export(deployed, loader[0][0], Path(place) / "model.onnx")
        )  # compared with torch before it is there
        x, y = images(256, seed=1)
        found = [server(x[i : i + n].numpy()) for i, n in ((0, 1), (1, 7), (8, 248))]
    print(f"accuracy of the server: {(np.concatenate(found) == y.numpy()).mean():.3f}")
    return result


if __name__ == "__main__":
    main()
