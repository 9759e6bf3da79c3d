"""Callbacks that distil inside the loops of others."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actprune as ap
from actprune.callbacks import _of_trainer, _Teacher, lightning_callback, trainer_callback
from actprune.recovery.distillation import distillation

pytestmark = [pytest.mark.filterwarnings("ignore")]  # of the packages on themselves

LIGHTNING = pytest.mark.skipif(importlib.util.find_spec("pytorch_lightning") is None, reason="needs pytorch-lightning")
TRAINER = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    found = [torch.randn(16, 4, generator=draw) for _ in range(8)]
    return [(x, x[:, :3].argmax(1)) for x in found]


# ---- Lightning


def module(net: nn.Module, calls: int = 1) -> Any:
    import pytorch_lightning as pl  # pyright: ignore[reportMissingImports]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Any:
            outputs = [self(batch[0]) for _ in range(calls)]
            return {"loss": F.cross_entropy(outputs[0], batch[1])} if calls else self.net(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    return Module()


def fitted(model: Any, callback: Any, epochs: int = 12) -> Any:
    import pytorch_lightning as pl  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader

    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback], **quiet)  # type: ignore[arg-type]
    trainer.fit(model, DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    model.trainer = None
    return model.eval()


def far(model: nn.Module, teacher: nn.Module) -> float:
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        return float(distillation(model.eval()(x), teacher.eval()(x), 4.0))


@LIGHTNING
@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("part", ["", "net"])
def test_lightning_distils(part: str) -> None:
    teacher, model = network(1), module(network(2))
    held, labelled = copy.deepcopy(teacher.state_dict()), module(network(2))
    fitted(labelled, lightning_callback(teacher, distill=0.0))
    fitted(model, lightning_callback(teacher, distill=1.0, temperature=4.0, module=part))
    assert far(model, teacher) < 0.1 < 0.5 < far(labelled, teacher)
    assert all(torch.equal(value, held[name]) for name, value in teacher.state_dict().items())
    assert "training_step" not in vars(model) and not model._forward_hooks and not model.net._forward_hooks
    with torch.no_grad():
        values = [model.net[0](x) for x, _ in batches()]
    assert torch.allclose(model.net[1].running_mean, torch.stack([v.mean(0) for v in values]).mean(0), atol=1e-5)


@LIGHTNING
@pytest.mark.usefixtures("vision")
def test_lightning_needs_the_one_call() -> None:
    for calls in (0, 2):
        model = module(network(2), calls)
        with pytest.raises(ap.DataError, match="does not call the pruned network once") as caught:
            fitted(model, lightning_callback(network(1)), epochs=1)
        assert f"got: {calls} calls" in str(caught.value) and 'module="net"' in str(caught.value)
        assert "training_step" not in vars(model) and not model._forward_hooks


# ---- the Trainer of Hugging Face


def bert(seed: int) -> Any:
    from transformers import BertConfig, BertForTokenClassification  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForTokenClassification(config)


def trained(model: Any, callback: Any, folder: Any, **given: Any) -> Any:
    from transformers import Trainer, TrainingArguments  # pyright: ignore[reportMissingImports]

    arguments = TrainingArguments(
        str(folder), num_train_epochs=6, per_device_train_batch_size=8, learning_rate=1e-2, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, **given,
    )  # fmt: skip
    x = torch.randint(0, 8, (64, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, dtype=torch.long)
    data = [{"input_ids": row, "attention_mask": mask, "labels": row % 3} for row in x]
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()  # type: ignore[arg-type]
    return model.eval()


@TRAINER
@pytest.mark.usefixtures("hub")
def test_the_trainer_distils(tmp_path: Any) -> None:
    teacher, model, other = bert(1).eval(), bert(2), bert(2)
    with torch.no_grad():
        teacher.classifier.weight *= 20
    trained(model, trainer_callback(teacher, distill=1.0), tmp_path, gradient_accumulation_steps=2)
    trained(other, trainer_callback(teacher, distill=0.0), tmp_path)
    x = torch.randint(0, 8, (32, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found, labelled = (one(x).logits.argmax(-1) for one in (teacher, model, other))
    assert float((found == wanted).float().mean()) > 0.9
    assert float((labelled == x % 3).float().mean()) > 0.9 > float((wanted == x % 3).float().mean())
    assert not model._forward_hooks


@TRAINER
def test_a_decoder_that_starts_from_labels(hub: Any, tmp_path: Any) -> None:
    """The teacher needs them as well, and labels of -100 are no targets."""
    config = hub.T5Config(
        vocab_size=8, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, dropout_rate=0.0
    )
    torch.manual_seed(0)
    teacher, model = (hub.T5ForConditionalGeneration(config) for _ in range(2))
    held = _Teacher(teacher.eval(), 1.0, 1.0)
    x = torch.randint(1, 8, (4, 6))
    labels = torch.where(torch.arange(6) < 4, x, -100)
    given = {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": labels, "num_items_in_batch": 16}
    found, wanted, classes, weight = _of_trainer(held, (), given, model(**given))
    assert classes and float(weight) == 1.0
    assert found.shape == wanted.shape == (16, 8)
    trained(model, trainer_callback(teacher, distill=1.0), tmp_path)


@TRAINER
@pytest.mark.usefixtures("hub")
def test_the_trainer_needs_a_loss(tmp_path: Any) -> None:
    with pytest.raises(ap.DataError, match="no loss that distillation") as caught:
        trained(bert(2), trainer_callback(bert(1)), tmp_path, label_smoothing_factor=0.1)
    assert "without label smoothing" in str(caught.value)
