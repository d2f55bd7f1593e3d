"""Metrics against values worked out by hand, orders of classes against known permutations, splits into tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ssd_train import data
from ssd_train.data.tasks import class_order, make_tasks
from ssd_train.errors import BadInput
from ssd_train.metrics import accuracy as metrics

MATRIX = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.1], [0.7, 0.5, 0.4]]
INITIAL = [0.1, 0.0, 0.3]


def test_continual_metrics():
    assert metrics.bwt(MATRIX) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert metrics.forgetting(MATRIX) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert metrics.fwt(MATRIX, INITIAL) == pytest.approx(((0.2 - 0.0) + (0.1 - 0.3)) / 2)


def test_forgetting_is_from_the_best_and_never_negative():
    assert metrics.forgetting([[0.5, 0.0], [0.8, 0.9]]) == 0
    assert metrics.forgetting([[0.5, 0, 0], [0.8, 0.9, 0], [0.6, 0.9, 1]]) == pytest.approx((0.2 + 0.0) / 2)


def test_undefined_is_null():
    assert metrics.bwt([[1.0]]) is None and metrics.forgetting([[1.0]]) is None and metrics.fwt([[1.0]], [0.1]) is None
    oracle = [[None, None], [0.9, 0.8]]
    assert metrics.bwt(oracle) is None and metrics.forgetting(oracle) is None and metrics.fwt(oracle, [0, 0]) is None
    assert metrics.triple([0.5]) == {"mean": 0.5, "std": None, "per_seed": [0.5]}
    assert metrics.triple([None, 0.5]) == {"mean": None, "std": None, "per_seed": [None, 0.5]}


def test_triple_has_ddof_1():
    triple = metrics.triple([1.0, 2.0, 4.0])
    assert triple["mean"] == pytest.approx(7 / 3) and triple["std"] == pytest.approx(math.sqrt(7 / 3))


def test_task_agnostic_and_task_aware():
    logits = torch.tensor([[0.0, 5.0, 9.0], [3.0, 1.0, 2.0], [1.0, 4.0, 0.0], [8.0, 7.0, 1.0]])
    labels = torch.tensor([1, 0, 1, 1])
    assert metrics.accuracies(logits, labels, [0, 1]) == (0.5, 0.75)
    assert metrics.accuracies(logits[:0], labels[:0], [0, 1]) == (None, None)


def test_accuracy_is_over_samples():
    assert metrics.weighted([1.0, 0.0], [30, 10]) == 0.75
    assert metrics.weighted([1.0, None], [30, 0]) == 1.0
    assert metrics.weighted([None], [0]) is None


def test_orders():
    assert class_order(5, "ordinal") == [0, 1, 2, 3, 4]
    for seed in (3, 15, 27, 97):
        np.random.seed(seed)
        assert class_order(10, f"numpy:{seed}") == np.random.choice(np.arange(10), 10, replace=False).tolist()
    assert class_order(10, "seed:4") == class_order(10, "seed", 4) == np.random.default_rng(4).permutation(10).tolist()
    assert class_order(10, "seed:4") != class_order(10, "seed:5")


@pytest.mark.parametrize("spec", ["", "random", "seed:", "seed:-1", "seed:x", "numpy", "numpy:1.5", "numpy:4294967296"])
def test_unknown_orders(spec):
    with pytest.raises(BadInput, match="--order"):
        class_order(10, spec)


def test_tasks_cover_every_sample_once():
    digits = data.load("digits")
    tasks = make_tasks(digits, class_order(10, "numpy:3"), 4)
    assert [len(c) for c in tasks.classes] == [4, 4, 2]
    assert torch.equal(torch.cat(tasks.train).sort().values, torch.arange(len(digits.y_train)))
    assert torch.equal(torch.cat(tasks.test).sort().values, torch.arange(len(digits.y_test)))
    for classes, rows in zip(tasks.classes, tasks.train):
        assert set(digits.y_train[rows].tolist()) == set(classes)
    with pytest.raises(BadInput, match="--classes-per-task"):
        make_tasks(digits, list(range(10)), 11)


def test_digits_is_the_documented_split():
    digits = data.load("digits")
    assert (len(digits.x_train), len(digits.x_test), digits.dim, digits.classes) == (1437, 360, 64, 10)
    assert digits.x_train.min() == 0 and digits.x_train.max() == 1
