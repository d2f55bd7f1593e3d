"""The formulas of every method against the same written out plainly, most of them sample by sample.

It is long because each method has its formula here.
"""

from __future__ import annotations

import dataclasses
import os
import random

import pytest
import torch
import torch.nn.functional as F
from ssd_train import data
from ssd_train.distill import select_units
from ssd_train.importance import ESTIMATORS
from ssd_train.methods import METHODS
from ssd_train.methods.base import Batch
from ssd_train.methods.icarl import herd
from ssd_train.model import ReLUMLP
from ssd_train.options import config_of
from ssd_train.records import COLUMNS, Interrupted
from ssd_train.trainer import Trainer


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


def config(method, **changes):
    base = {"data": "digits", "method": method, "neurons": 60, "k": 5, "n_distill": 30, "epochs": 2,
            "batch_size": 32, "classes_per_task": 4, "eval_every": 2, "importance_samples": 200,
            "engine": "autograd"}  # fmt: skip
    return config_of(**base | changes)


@pytest.mark.parametrize("method, new", [("ewc", 1.0), ("mas", 0.7)])
def test_online_importance_is_one_term(method, new, tmp_path):
    """The first task's importance is kept whole; later ones are added to 0.3 of it; the anchor is the latest."""
    trainer = Trainer(config(method, online=0.3, model="relu"), data.load("digits"), 0, tmp_path)
    given, replace = [], trainer.method.quadratic.replace
    trainer.method.quadratic.replace = lambda model, importance, *factors: (
        given.append(importance) or replace(model, importance, *factors)
    )
    trainer.fit()
    quadratic, (first, second, third) = trainer.method.quadratic, given
    for name, parameter in trainer.model.named_parameters():
        wanted = 0.3 * (0.3 * first[name] + new * second[name]) + new * third[name]
        assert torch.allclose(quadratic.importance[name], wanted) and torch.equal(quadratic.anchor[name], parameter)
    assert "online 0.3" in trainer.method.estimator()


def test_si_follows_its_formula(tmp_path):
    """omega and Omega of a run, recomputed from outside: weights before and after each step, own gradients."""
    settings = config("si", model="relu", dtype="float64", coef=2.0, beta=0.3)
    trainer = Trainer(settings, data.load("digits"), 0, tmp_path)
    model, step = trainer.model, trainer.engine.step
    names = [name for name, _ in model.named_parameters()]
    omega, start, total, recorded = {}, {}, dict.fromkeys(names, 0.0), []
    loss = trainer.method.loss

    def record(model, batch):
        g = gradients(model, F.cross_entropy(0.3 * model(batch.x).logits, batch.y))
        recorded.append((g, {n: p.detach().clone() for n, p in model.named_parameters()}))
        if trainer.progress.epoch == 0 and trainer.sums.samples == 0:
            start.update(recorded[-1][1])
            omega.update({n: torch.zeros_like(start[n]) for n in names})
        return loss(model, batch)

    def stepped():
        step()
        g, before = recorded[-1]
        for n, p in model.named_parameters():
            omega[n] -= g[n] * (p.detach() - before[n])

    trainer.method.loss, trainer.engine.step = record, stepped
    after_task = trainer.method.after_task

    def check(context):
        after_task(context)
        for n, p in model.named_parameters():
            total[n] = total[n] + omega[n] / ((p.detach() - start[n]) ** 2 + 0.1)
            assert torch.allclose(trainer.method.quadratic.importance[n], total[n], rtol=1e-8, atol=1e-14), n
            assert torch.equal(trainer.method.quadratic.anchor[n], p)

    trainer.method.after_task = check
    trainer.fit()
    assert trainer.progress.finished and any((value < 0).any() for value in total.values()), "omega is not clamped"


@pytest.mark.parametrize("method", ["ewc", "mas", "l2", "si", "ssd+ewc"])
def test_penalty_joins_from_the_second_task(method, tmp_path):
    """Loss = the base method's loss + coef sum importance (w - anchor)^2, and nothing in task 0."""
    trainer = Trainer(config(method, model="sdmlp"), data.load("digits"), 0, tmp_path)
    trainer.fit()
    parts = trainer.progress.loss_parts
    assert parts[0]["penalty"] == 0 and all(part["penalty"] != 0 for part in parts[1:])
    for part in parts:
        base = part["ce"]
        if method == "ssd+ewc" and part["task"]:
            base = 0.7 * part["ce"] + 0.3 * (0.1 * part["kd_hidden"] + 0.9 * part["kd_logits"])
        assert part["loss"] == pytest.approx(base + part["penalty"], rel=1e-5)


@pytest.mark.parametrize("method", ["ewc", "mas", "l2", "ssd+ewc"])
def test_engines_agree_on_penalties(method, tmp_path):
    """The native engine's penalty is the autograd engine's: same weights after two tasks, up to rounding."""
    digits, weights = data.load("digits"), []
    for engine in ("fused", "autograd"):
        settings = config(method, model="sdmlp", engine=engine, classes_per_task=5, gaba_switch=1e4)
        trainer = Trainer(settings, digits, 0, tmp_path / engine)
        trainer.fit()
        assert trainer.engine.name == engine
        weights.append([trainer.model.weights[0].detach(), trainer.model.output_weight.detach()])
    for a, b in zip(*weights):
        assert torch.linalg.norm(a - b) < 1e-4 * torch.linalg.norm(b)


def test_lwf_is_distillation_of_the_old_classes(tmp_path):
    trainer = Trainer(config("lwf", coef=0.6), data.load("digits"), 0, tmp_path, interrupted=lambda: False)
    stop_in = trainer.method.prepare

    def prepare(context):
        stop_in(context)
        if trainer.progress.stage == 2:
            raise Interrupted

    trainer.method.prepare = prepare
    with pytest.raises(Interrupted):
        trainer.fit()
    method, model = trainer.method, trainer.model
    assert method.old_classes.tolist() == list(range(8))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    rows = torch.arange(20)
    logits, taught = model(trainer.context.x[rows]).logits, method.teacher(trainer.context.x[rows]).logits
    q = (taught[:, :8] / 2).softmax(1)
    kd = 4 * (q * (q.log() - (logits[:, :8] / 2).log_softmax(1))).sum(1).mean()
    wanted = F.cross_entropy(logits, trainer.context.y[rows]) + 0.6 * kd
    total = method.loss(model, Batch(trainer.context.x[rows], trainer.context.y[rows], rows)).total
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_finetune_is_plain_sgd(tmp_path):
    """Bitwise torch.optim.SGD on the same batches, where the gradient is not clipped."""
    trainer = Trainer(config("finetune", max_grad_norm=None), data.load("digits"), 0, tmp_path)
    torch.manual_seed(0)
    model = ReLUMLP(64, 10, 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    orders = []
    train_epoch = trainer.engine.train_epoch
    trainer.engine.train_epoch = lambda order, *rest: (
        orders.append((trainer.progress.stage, order)) or train_epoch(order, *rest)
    )
    trainer.fit()
    for stage, order in orders:
        x, y = (whole[trainer.stages[stage]] for whole in (trainer.context.train_x, trainer.context.train_y))
        for batch in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]).logits, y[batch]).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), trainer.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_reports_name_the_estimator(estimator, tmp_path):
    trainer = Trainer(config("ewc", estimator=estimator), data.load("digits"), 0, tmp_path)
    assert estimator in trainer.method.estimator() and "beta" in trainer.method.estimator()


def test_the_report_of_ssd_and_ewc_names_both(tmp_path):
    named = Trainer(config("ssd+ewc"), data.load("digits"), 0, tmp_path).method.estimator()
    assert "30 units by frequency" in named and "Fisher batch-argmax" in named


def test_herding_follows_the_mean():
    """The first exemplar is the sample nearest the mean, each next one keeps the running mean nearest."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.4, 0.1], [0.0, 1.0], [0.6, -0.9]])
    chosen, mean = herd(features, 3).tolist(), features.mean(0)
    for k in range(3):
        best = min(
            (i for i in range(5) if i not in chosen[:k]),
            key=lambda i: (mean - features[[*chosen[:k], i]].mean(0)).norm().item(),
        )
        assert chosen[k] == best
    assert sorted(herd(features, 9).tolist()) == [0, 1, 2, 3, 4]


def test_icarl_keeps_exemplars_of_every_class_and_forgets_less(tmp_path):
    digits = data.load("digits")
    accuracy = {}
    for method in ("icarl", "finetune"):
        trainer = Trainer(config(method, epochs=15), digits, 0, tmp_path / method)
        trainer.fit()
        accuracy[method] = trainer.progress.accuracy
        if method == "icarl":
            for label, rows in trainer.method.exemplars.items():
                assert (digits.y_train[rows] == label).all() and 0 < len(rows) <= 2000 // 10
            assert len(trainer.method.exemplars) == 10
            curve = torch.tensor(trainer.history, dtype=torch.float64)
            first = [curve[(curve[:, 0] == t) & (curve[:, 1] < 15)][0] for t in (1, 2)]
            on_task = [row[len(COLUMNS) + t].item() for t, row in zip((1, 2), first)]
            assert min(on_task) > 0.2, "the curve of a task starts before its exemplars are chosen"
    assert accuracy["icarl"] > accuracy["finetune"] + 0.2


def test_icarl_s_loss_is_its_formula(tmp_path):
    """Sigmoid losses of the seen classes: 0 or 1 for the task's, the previous model's outputs for the older ones."""
    trainer = Trainer(config("icarl"), data.load("digits"), 0, tmp_path)
    prepare = trainer.method.prepare

    def stop(context):
        prepare(context)
        if trainer.progress.stage == 1:
            raise Interrupted

    trainer.method.prepare = stop
    with pytest.raises(Interrupted):
        trainer.fit()
    model, context = trainer.model, trainer.context
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        taught = model(context.x).logits.sigmoid()
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    rows = torch.arange(len(context.x) - 40, len(context.x))  # samples of the task, then exemplars
    batch = Batch(context.x[rows], context.y[rows], rows)
    targets = F.one_hot(batch.y, 10).float()
    targets[:, :4] = taught[rows, :4]
    p = model(batch.x).logits.sigmoid()
    losses = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(0)
    loss = trainer.method.loss(model, batch)
    assert loss.total.item() == pytest.approx(losses[:8].sum().item(), rel=1e-5)
    assert loss.parts["kd_logits"].item() == pytest.approx(losses[:4].sum().item(), rel=1e-5)
    for kept, teacher in zip(before, trainer.method.teacher.parameters()):
        assert torch.equal(kept, teacher)


@pytest.mark.parametrize("n, text", [(100, "all 100 units"), (500, "all 100 units"), (20, "20 units"), (3, "5 units")])
def test_the_estimator_says_how_many_units_are_distilled(n, text):
    """n is clamped to K .. R; with n = R nothing is selected, and it says so."""
    told = METHODS["ssd"](config("ssd", neurons=100, k=5, n_distill=n)).estimator()
    assert told.startswith(text)


def test_flymodel_learns_in_one_pass(tmp_path):
    """Its formula sample by sample: weights of the sample's class grow by step times the activity, up to 1."""
    digits = data.load("digits")
    digits = dataclasses.replace(digits, x_train=digits.x_train - 0.5, x_test=digits.x_test - 0.5)
    trainer = Trainer(config("flymodel", neurons=500, inputs=6, step=0.02), digits, 0, tmp_path)
    trainer.fit()
    method = trainer.method
    assert (method.projection.sum(1) == 6).all() and set(method.projection.unique().tolist()) == {0.0, 1.0}
    weights = torch.zeros(10, 500)
    for task in trainer.tasks.train:
        for x, y in zip(trainer.context.train_x[task], trainer.context.train_y[task]):
            scores = method.projection @ ((x - x.min()) / (x.max() - x.min()))
            values, units = scores.topk(5)
            weights[y, units] = (weights[y, units] + 0.02 * values / values[0]).clamp_max(1)
    torch.testing.assert_close(method.weights, weights, rtol=1e-4, atol=1e-5)
    assert (weights == 1).any() and trainer.progress.accuracy > 0.6 and trainer.history == []


def test_heads_are_those_of_all_data_at_once(tmp_path):
    """Sums class by class give the classifier of the whole set: written out plainly, and scikit-learn's ridge."""
    from sklearn.linear_model import Ridge

    digits = data.load("digits")
    trainers = {}
    for name in ("ncm", "slda", "ridge"):
        trainers[name] = Trainer(config(name), digits, 0, tmp_path / name)
        trainers[name].fit()
    x, y = trainers["ncm"].context.train_x.double(), trainers["ncm"].context.train_y
    test = trainers["ncm"].x_test.double()
    means = torch.stack([x[y == c].mean(0) for c in range(10)])
    ncm = torch.cdist(test, means).argmin(1)
    covariance = sum((x[y == c] - means[c]).T @ (x[y == c] - means[c]) for c in range(10)) / len(x)
    mixed = (1 - 1e-4) * covariance + 1e-4 * torch.eye(64, dtype=torch.float64)
    weight = torch.linalg.inv(mixed) @ means.T
    slda = (test @ weight - 0.5 * (means.T * weight).sum(0)).argmax(1)
    alpha = 1e-3 * x.square().sum().item() / 64
    fitted = Ridge(alpha=alpha).fit(x.numpy(), F.one_hot(y, 10).numpy())
    ridge = torch.from_numpy(fitted.predict(test.numpy())).argmax(1)
    for name, wanted in (("ncm", ncm), ("slda", slda), ("ridge", ridge)):
        method, context = trainers[name].method, trainers[name].context
        assert torch.equal(method.predict(context, trainers[name].x_test).argmax(1), wanted), name
        matrix = trainers[name].progress.matrix
        assert matrix[0][0] > 0.9 and all(value == 0 for value in matrix[0][1:]), name  # classes not seen never win


@pytest.mark.skipif("SSD_DATA_DIR" not in os.environ, reason="SSD_DATA_DIR is not set: no embeddings at hand")
@pytest.mark.parametrize(
    "name, classes, step, paper", [("cifar10", 10, 0.005, 0.7039), ("cifar100", 100, 0.01, 0.3612)]
)
def test_flymodel_gives_what_the_sdmlp_paper_s_authors_report(name, classes, step, paper, tmp_path):
    """Fingerprint of rule and embeddings: with the authors' projection of seed 1, 1000 units of 32 inputs each."""
    file = f"{os.environ['SSD_DATA_DIR']}/{name}_convmixer.safetensors"
    settings = config("flymodel", data=file, neurons=1000, step=step, classes_per_task=classes)
    trainer = Trainer(settings, data.load(file), 1, tmp_path)  # one task: the sums do not depend on the order
    trainer.method.before_task(trainer.context)
    trainer.method.projection.zero_()
    for unit in range(1000):
        trainer.method.projection[unit, random.Random(1 + unit).sample(range(256), 32)] = 1
    trainer.fit()
    assert abs(trainer.progress.accuracy - paper) < 0.001


def second_task(tmp_path, **changes):
    """An SSD trainer at the beginning of its second task, one epoch's step away from its teacher."""
    trainer = Trainer(config("ssd", **changes), data.load("digits"), 0, tmp_path)
    prepare = trainer.method.prepare

    def stop(context):
        prepare(context)
        if trainer.progress.stage == 1:
            raise Interrupted

    trainer.method.prepare = stop
    with pytest.raises(Interrupted):
        trainer.fit()
    with torch.no_grad():
        trainer.model.weights[0].add_(0.05 * torch.rand_like(trainer.model.weights[0]))
        trainer.model.project()
    rows = torch.arange(30)
    return trainer, Batch(trainer.context.x[rows], trainer.context.y[rows], rows)


@pytest.mark.parametrize("engine", ["fused", "autograd"])
def test_a_teacher_counts_nothing(engine, tmp_path):
    """Neither its own counters, which decide its inhibition, nor the student's."""
    trainer, _ = second_task(tmp_path, engine=engine, batch_size=64)
    teacher, student = trainer.method.teacher.model, trainer.model
    assert torch.equal(teacher.counts[0], student.counts[0]) and teacher.counts[0].any()
    kept = student.counts[0].clone()
    trainer.context.make_teacher(teacher, trainer.method.teacher.units)
    assert torch.equal(teacher.counts[0], kept) and torch.equal(student.counts[0], kept)
    used = trainer.engine.train_epoch(torch.arange(64), trainer.sums, lambda: False)
    assert used == 64 and torch.equal(teacher.counts[0], kept) and not torch.equal(student.counts[0], kept)


def test_units_are_those_active_on_the_task_s_data(tmp_path):
    """Counted in a pass after the task, over all of its data; the counters hold all epochs' activity instead."""
    trainer = Trainer(config("ssd", gaba_switch=3e3), data.load("digits"), 0, tmp_path)
    after_task, differ = trainer.method.after_task, []

    def check(context):
        after_task(context)
        active = (trainer.model.layers(context.x)[0].z > 0).sum(0)
        wanted, other = (c.sort(descending=True, stable=True).indices[:30].sort().values
                         for c in (active, trainer.model.counts[0]))  # fmt: skip
        assert torch.equal(trainer.method.units[0], wanted)
        differ.append(not torch.equal(wanted, other))

    trainer.method.after_task = check
    trainer.fit()
    assert len(differ) == 3 and any(differ)


def distillation(z, q, temperature=8.0):
    log_q, log_z = (q / temperature).log_softmax(1), (z / temperature).log_softmax(1)
    return temperature**2 * (log_q.exp() * (log_q - log_z)).sum(1).mean()


@pytest.mark.parametrize("options", [{}, {"hidden": "scores"}, {"old_classes_only": True}, {"kl": "reverse"}], ids=str)
def test_ssd_loss_and_its_options(options, tmp_path):
    trainer, batch = second_task(tmp_path, dtype="float64", **options)
    model, teacher = trainer.model, trainer.method.teacher
    units, w, v = teacher.units[0], model.weights[0], teacher.model.weights[0]
    logits, taught = model(batch.x, normalized=True).logits, teacher.model(batch.x, normalized=True).logits
    if options.get("hidden") == "scores":
        hidden, target = batch.x @ w[units].T, batch.x @ v[units].T
    else:
        hidden, target = model.layers(batch.x)[0].z[:, units], teacher.model.layers(batch.x)[0].z[:, units]
    old = slice(0, 4) if "old_classes_only" in options else slice(None)
    kd = distillation
    if "kl" in options:
        kd = lambda z, q: distillation(q, z)  # noqa: E731
    wanted = 0.7 * F.cross_entropy(logits, batch.y)
    wanted = wanted + 0.3 * (0.1 * kd(hidden, target) + 0.9 * kd(logits[:, old], taught[:, old]))
    loss = trainer.method.loss(model, batch)
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-9)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss.total, parameters), torch.autograd.grad(wanted, parameters)):
        a = a.to_dense() if a.is_sparse else a
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-12)


def test_units_by_frequency_and_entropy():
    counts = torch.tensor([0, 5, 9, 1, 9, 10, 2])
    assert select_units([counts], 3, 2)[0].tolist() == [2, 4, 5]
    # p = 0.5 has the most entropy, p = 1 none; 0.1 and 0.9 tie; a silent neuron comes last.
    assert select_units([counts], 4, 2, 10, "entropy")[0].tolist() == [2, 3, 4, 5]
    assert select_units([counts], 1, 2, 10, "entropy")[0].tolist() == [2, 5], "n is at least K"
    assert select_units([counts], 99, 2, 10, "entropy")[0].tolist() == list(range(7))


@pytest.mark.parametrize("engine", ["fused", "autograd"])
def test_frequency_of_the_last_epoch_is_the_counters_growth(engine, tmp_path):
    trainer, grown = Trainer(config("ssd", frequency="last_epoch", engine=engine), data.load("digits"), 0, tmp_path), []
    train_epoch, after_task = trainer.engine.train_epoch, trainer.method.after_task

    def counted(*arguments):
        before = trainer.model.counts[0].clone()
        used = train_epoch(*arguments)
        grown.append(trainer.model.counts[0] - before)
        return used

    def check(context):
        after_task(context)
        wanted = grown[-1].sort(descending=True, stable=True).indices[:30].sort().values
        assert torch.equal(trainer.method.units[0], wanted)

    trainer.engine.train_epoch, trainer.method.after_task = counted, check
    trainer.fit()
    assert trainer.engine.name == engine and len(grown) == 6


def test_held_out_validation_split():
    digits = data.load("digits")
    held = digits.held_out(0.2)
    assert len(held.x_train) + len(held.x_test) == len(digits.x_train) and "validation 0.2" in held.name
    for label in range(10):
        total = (digits.y_train == label).sum().item()
        assert (held.y_test == label).sum().item() == round(0.2 * total)
    both = torch.cat([held.x_train, held.x_test])
    assert torch.equal(both.sort(0).values, digits.x_train.sort(0).values), "the test set plays no part"
    assert torch.equal(held.x_test, digits.held_out(0.2).x_test)
