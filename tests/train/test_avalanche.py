"""The baselines against avalanche-lib on digits: same weights, same batches. CONTRIBUTING.md says how to install it."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from ssd_train import data
from ssd_train.options import config_of
from ssd_train.trainer import Trainer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("avalanche") is None, reason="needs avalanche-lib 0.6.0 (CONTRIBUTING.md)"
)
EPOCHS, BATCH = 3, 32


@pytest.fixture(scope="module")
def avalanche():
    """avalanche-lib, also beside a CPU build of torch, where PyPI's torchvision finds no operators of its own."""
    library = None
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        import avalanche
        import avalanche.benchmarks.utils
        import avalanche.training.supervised
    assert avalanche.__version__ == "0.6.0"
    yield avalanche
    del library


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def ours(digits, folder, method, **changes):
    """A run of this package, and what the other one needs to repeat it: first weights, and every epoch's order."""
    config = config_of(
        data="digits", method=method, model="relu", neurons=100, epochs=EPOCHS, batch_size=BATCH, max_grad_norm=None,
        beta=1.0 if method in ("ewc", "mas", "si") else None, importance_samples=0, engine="autograd", **changes,
    )  # fmt: skip
    trainer = Trainer(config, digits, 0, folder)
    start, orders, train_epoch = copy.deepcopy(trainer.model), [], trainer.engine.train_epoch

    def recorded(order, *rest):
        orders.append(order)
        return train_epoch(order, *rest)

    trainer.engine.train_epoch = recorded
    trainer.fit()
    assert len(orders) == EPOCHS * len(trainer.tasks)
    return trainer, start, orders


def theirs(avalanche, trainer, start, orders, name, **options):
    """The same run by the strategy `name` of avalanche-lib. Returns its model and the strategy."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset

    class Logits(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).logits

    class InOrder(getattr(avalanche.training.supervised, name)):
        """Takes the recorded batches instead of shuffling itself."""

        def make_train_dataloader(self, **kwargs):
            stage = self.clock.train_exp_counter
            epochs = iter(orders[stage * EPOCHS : (stage + 1) * EPOCHS])
            x, y = (tensor[trainer.stages[stage]] for tensor in (trainer.context.train_x, trainer.context.train_y))

            class Loader:
                def __iter__(self):
                    for rows in next(epochs).split(BATCH):
                        yield [x[rows], y[rows], torch.zeros(len(rows), dtype=torch.int64)]

            self.dataloader = Loader()

    def tensors(rows):
        return _make_taskaware_tensor_classification_dataset(
            trainer.context.train_x[rows], trainer.context.train_y[rows], task_labels=[0] * len(rows)
        )

    stream = benchmark_from_datasets(train=[tensors(rows) for rows in trainer.stages])
    model = Logits(copy.deepcopy(start))
    strategy = InOrder(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=BATCH, train_epochs=EPOCHS, evaluator=None, **options,
    )  # fmt: skip
    for experience in stream.train_stream:
        strategy.train(experience)
    return model.net, strategy


def assert_close(found, wanted, start, relative=1e-5):
    """The weights agree, and training moved them far enough for that to mean something."""
    for a, b, c in zip(found.parameters(), wanted.parameters(), start.parameters()):
        assert torch.linalg.norm(a - b) <= relative * torch.linalg.norm(b)
        assert torch.linalg.norm(a - c) > 100 * relative * torch.linalg.norm(c)


def test_finetune_is_bitwise_the_same(avalanche, digits, tmp_path):
    trainer, start, orders = ours(digits, tmp_path, "finetune")
    model, _ = theirs(avalanche, trainer, start, orders, "Naive")
    for a, b in zip(trainer.model.parameters(), model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("online", [None, 0.5])
def test_ewc(avalanche, digits, tmp_path, online):
    trainer, start, orders = ours(digits, tmp_path, "ewc", coef=300.0, estimator="mean-true", online=online)
    mode = {"mode": "separate"} if online is None else {"mode": "online", "decay_factor": online}
    model, strategy = theirs(avalanche, trainer, start, orders, "EWC", ewc_lambda=300.0, **mode)
    assert_close(trainer.model, model, start)
    terms = next(p for p in strategy.plugins if hasattr(p, "importances")).importances
    for name, importance in trainer.method.quadratic.importance.items():
        wanted = sum(term[f"net.{name}"].data for term in terms.values())
        assert torch.linalg.norm(importance - wanted) <= 1e-5 * torch.linalg.norm(wanted), name
    assert trainer.progress.loss_parts[-1]["penalty"] > 1e-3


def test_mas(avalanche, digits, tmp_path):
    trainer, start, orders = ours(digits, tmp_path, "mas", coef=1.0, estimator="mean", online=0.5)
    model, _ = theirs(avalanche, trainer, start, orders, "MAS", lambda_reg=1.0, alpha=0.5)
    assert_close(trainer.model, model, start)
    assert trainer.progress.loss_parts[-1]["penalty"] > 1e-3


def test_lwf(avalanche, digits, tmp_path):
    """avalanche-lib leaves out the factor T^2 = 4, so its alpha is four times this package's coefficient."""
    trainer, start, orders = ours(digits, tmp_path, "lwf", coef=0.5)
    model, _ = theirs(avalanche, trainer, start, orders, "LwF", alpha=2.0, temperature=2.0)
    assert_close(trainer.model, model, start)
    assert trainer.progress.loss_parts[-1]["kd_logits"] > 1e-3


def test_si_does_something_here_and_nothing_there(avalanche, digits, tmp_path):
    """avalanche-lib 0.6.0 keeps views of CPU weights, so no path is measured. tests/train/test_methods.py tests SI."""
    plain, start, orders = ours(digits, tmp_path / "finetune", "finetune")
    model, _ = theirs(avalanche, plain, start, orders, "SynapticIntelligence", si_lambda=1000.0)
    for a, b in zip(plain.model.parameters(), model.parameters()):
        assert torch.equal(a, b)
    trainer, _, _ = ours(digits, tmp_path / "si", "si", coef=10.0)
    assert trainer.progress.loss_parts[-1]["penalty"] > 1e-3
