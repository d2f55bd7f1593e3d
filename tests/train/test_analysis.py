"""Structural metrics against values worked out by hand, and an independent way of counting."""

from __future__ import annotations

import math

import pytest
import torch
from ssd_train.metrics import structure as analysis
from ssd_train.model import SDMLP


def model_and_probe(switch):
    torch.manual_seed(0)
    model = SDMLP(6, 3, 20, 2, gaba_switch=switch)
    return model, torch.nn.functional.normalize(torch.rand(15, 6), dim=1), torch.arange(15) % 3


def test_activation_entropy_is_eq_1_in_nats():
    counts = torch.tensor([0, 5, 10, 2])
    half, fifth = math.log(2), -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert analysis.activation_entropy(counts, 10) == pytest.approx((0 + half + 0 + fifth) / 4)
    # Top-10 of 10000 cannot exceed 0.0079, whatever is active.
    assert analysis.activation_entropy(torch.full((10_000,), 1), 1000) == pytest.approx(0.0079, abs=1e-4)


def test_class_entropy_is_weighted_by_activity():
    classes = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert analysis.class_entropy(classes) == pytest.approx((3 * 0 + 2 * math.log(2)) / 5)
    assert analysis.class_entropy(torch.zeros(2, 3, dtype=torch.float64)) is None


def test_jaccard():
    a, b = torch.tensor([5, 4, 3, 0, 0]), torch.tensor([5, 0, 4, 3, 0])
    assert analysis.most_frequent(a, 2) == {0, 1} and analysis.most_frequent(torch.tensor([1, 2, 2, 2]), 2) == {1, 2}
    assert analysis.most_frequent(a, 5) == {0, 1, 2}, "a neuron that is never active is in no set"
    assert analysis.jaccard(a, b, 3) == pytest.approx(2 / 4) and analysis.jaccard(a, a, 3) == 1
    assert analysis.jaccard(torch.zeros(3), torch.zeros(3), 2) is None


def test_row_cosine():
    teacher, student = torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 9]])
    assert analysis.row_cosine(teacher, student, torch.tensor([0, 1])) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("switch", [1e9, None])
def test_probe_counts_every_active_neuron(switch):
    """The same for the dense (all neurons active) and the sparse form of the activations."""
    model, x, y = model_and_probe(switch)
    seen = analysis.probe(model, x, y, 3)
    a = torch.relu(x @ model.weights[0].detach().T)
    inhibition = a.sort(dim=1, descending=True).values[:, 2:3]
    h = torch.relu(a - (1.0 if switch is None else -1.0) * inhibition)
    assert torch.equal(seen.counts, (h > 0).sum(0))
    wanted = torch.stack([h[y == c].sum(0) for c in range(3)]).double()
    assert torch.allclose(seen.classes, wanted, atol=1e-6)
    assert (model.counts[0] == 0).all(), "a probe is not training"


def test_path_length():
    """K = 2 winners per sample: samples are the edges of the graph, its shortest paths are found by hand (Floyd)."""
    model, x, _ = model_and_probe(None)
    a = torch.relu(x @ model.weights[0].detach().T)
    distance = torch.full((20, 20), math.inf)
    for i, j in a.topk(2, dim=1).indices.tolist():
        distance[i, j] = distance[j, i] = 1
    for k in range(20):
        distance = torch.minimum(distance, distance[:, k : k + 1] + distance[k : k + 1])
    distance.fill_diagonal_(math.inf)
    found = distance[torch.isfinite(distance)]
    assert analysis.path_length(model, x) == pytest.approx(found.mean().item())
