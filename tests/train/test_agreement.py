"""200 training steps of the real trainer against a dense fp64 oracle: within twice the error of the same in fp32.

The oracle is the algorithm once more, without any operation of the package: all neurons are scored, all rows are
updated and projected, and autograd differentiates.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from ssd_train import data
from ssd_train.options import config_of
from ssd_train.records import Interrupted
from ssd_train.trainer import Trainer
from torch import Tensor

STEPS = 200


class DenseSDMLP:
    """State and one training step in a given floating-point type."""

    def __init__(self, weights: list[Tensor], output_weight: Tensor, k: int, switch: float, dtype: torch.dtype) -> None:
        self.weights = [w.detach().clone().to(dtype) for w in weights]
        self.output = output_weight.detach().clone().to(dtype)
        self.counts = [torch.zeros(len(w), dtype=torch.int64) for w in weights]
        self.k, self.switch, self.dtype = k, switch, dtype

    def copy(self) -> DenseSDMLP:
        other = DenseSDMLP(self.weights, self.output, self.k, self.switch, self.dtype)
        other.counts = [c.clone() for c in self.counts]
        return other

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = []
        h = x.to(self.dtype)
        for weight, counts in zip(self.weights, self.counts):
            h = F.relu(h)
            h = h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)
            a = F.relu(h @ weight.T)
            inhibition = a.detach().sort(dim=1, descending=True).values[:, self.k : self.k + 1]
            g = torch.clip(-1 + 2 * counts.double() / self.switch, -1, 1).to(self.dtype)
            h = F.relu(a - g * inhibition)
            hidden.append(h)
        return h @ self.output.T, hidden

    def step(self, x: Tensor, y: Tensor, lr: float, teacher: DenseSDMLP | None, units: list[Tensor], alpha: float,
             lam: float, temperature: float) -> None:  # fmt: skip
        parameters = [*self.weights, self.output]
        for p in parameters:
            p.requires_grad_(True)
        logits, hidden = self.forward(x)
        loss = F.cross_entropy(logits, y)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits, teacher_hidden = teacher.forward(x)
            kd_hidden = sum(
                distillation(h[:, j], q[:, j], temperature) for h, q, j in zip(hidden, teacher_hidden, units)
            )
            kd = lam * kd_hidden + (1 - lam) * distillation(logits, teacher_logits, temperature)
            loss = alpha * loss + (1 - alpha) * kd
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients)).item()
        scale = min(1.0, 1.0 / (norm + 1e-6))
        for p, g in zip(parameters, gradients):
            p.requires_grad_(False)
            p -= lr * (g * scale)
            p.clamp_(min=0)
        for weight in self.weights:
            weight /= weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for counts, h in zip(self.counts, hidden):
            counts += (h > 0).sum(0)

    def most_frequent(self, x: Tensor, n: int) -> list[Tensor]:
        _, hidden = self.forward(x)
        return [(h > 0).sum(0).sort(descending=True, stable=True).indices[:n] for h in hidden]


def distillation(z: Tensor, q: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(q / T) || softmax(z / T)), mean over the batch."""
    log_q, log_z = F.log_softmax(q / temperature, dim=1), F.log_softmax(z / temperature, dim=1)
    return temperature**2 * (log_q.exp() * (log_q - log_z)).sum(1).mean()


def train_recorded(config, folder):
    """Trains STEPS steps; returns the trainer, its initial weights and each step's (stage, x, y)."""
    steps = []
    trainer = Trainer(config, data.load("digits"), 0, folder)
    initial = [w.detach().clone() for w in trainer.model.weights], trainer.model.output_weight.detach().clone()
    train_epoch = trainer.engine.train_epoch

    def recorded(order, sums, interrupted):
        order = order[: (STEPS - len(steps)) * config.batch_size]  # a shorter epoch counts as interrupted
        if not len(order):
            return 0
        for batch in order.split(config.batch_size):
            rows = trainer.stages[trainer.progress.stage][batch]
            steps.append((trainer.progress.stage, trainer.data.x_train[rows], trainer.data.y_train[rows]))
        return train_epoch(order, sums, interrupted)

    trainer.engine.train_epoch = recorded
    assert trainer.engine.name == config.engine
    with pytest.raises(Interrupted):
        trainer.fit()
    return trainer, initial, steps


def replay(trainer, initial, steps, dtype):
    """The same steps by the oracle: its own teacher and its own index sets."""
    config, options = trainer.config, trainer.method.options
    model = DenseSDMLP(*initial, config.k, trainer.model.gaba_switch, dtype)
    stage, teacher, units = 0, None, []
    for step_stage, x, y in steps:
        if step_stage != stage:
            units = model.most_frequent(trainer.data.x_train[trainer.stages[stage]], options.n_distill)
            teacher, stage = model.copy(), step_stage
        model.step(x, y, config.lr, teacher, units, options.alpha, options.lam, options.temperature)
    return model


def error(weights, output, gold):
    pairs = zip([*weights, output], [*gold.weights, gold.output])
    return [torch.linalg.norm(a.detach().double() - b).item() for a, b in pairs]


@pytest.mark.parametrize("engine, layers", [("fused", 1), ("autograd", 1), ("autograd", 2)])
def test_training_agrees_with_dense_fp64(engine, layers, tmp_path):
    config = config_of(data="digits", method="ssd", neurons=300, k=10, layers=layers, engine=engine, epochs=10,
                         batch_size=32, n_distill=100, eval_every=10)  # fmt: skip
    trainer, initial, steps = train_recorded(config, tmp_path)
    assert len(steps) == STEPS and steps[-1][0] >= 1, "the steps must reach a task with a teacher"
    gold, low = (replay(trainer, initial, steps, dtype) for dtype in (torch.float64, torch.float32))
    ours = error(trainer.model.weights, trainer.model.output_weight, gold)
    dense = error(low.weights, low.output, gold)
    assert all(a <= 2 * b + 1e-6 for a, b in zip(ours, dense)), f"ours {ours}, dense fp32 {dense}"
    moved = torch.linalg.norm(gold.output - initial[1].double()).item()
    assert moved > 1e4 * max(ours), "the comparison must be much finer than what training changed"


def test_fp64_training_is_the_oracle(tmp_path):
    """In fp64 both are the same up to rounding, counters included."""
    config = config_of(data="digits", method="ssd", neurons=300, k=10, epochs=10, batch_size=32, n_distill=100,
                         eval_every=10, engine="autograd", dtype="float64")  # fmt: skip
    trainer, initial, steps = train_recorded(config, tmp_path)
    gold = replay(trainer, initial, steps, torch.float64)
    assert max(error(trainer.model.weights, trainer.model.output_weight, gold)) < 1e-10
    assert torch.equal(trainer.model.counts[0], gold.counts[0])


def test_engines_agree_over_a_whole_run(tmp_path):
    """Three tasks with the GABA switch inside the first: the same accuracies but for a sample near a boundary."""
    config = config_of(data="digits", method="ssd", neurons=300, k=10, epochs=30, batch_size=32, n_distill=100,
                         classes_per_task=4)  # fmt: skip
    matrices = []
    for engine in ("fused", "autograd"):
        trainer = Trainer(dataclasses.replace(config, engine=engine), data.load("digits"), 1, tmp_path / engine)
        trainer.fit()
        assert trainer.engine.name == engine and trainer.model.counts[0].max() > trainer.model.gaba_switch
        matrices.append(torch.tensor(trainer.progress.matrix))
    assert (matrices[0] - matrices[1]).abs().max() < 0.05
