"""The engine with a Share: threads stand for processes here, and weights must be bitwise those of one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ssd_kernels import SDMLPEngine, normalize_inputs
from ssd_kernels._native import cpu_module
from ssd_kernels.sdmlp_trainer import QuadraticPenalty, Share, neuron_bounds

pytestmark = pytest.mark.skipif(cpu_module()[0] is None, reason="the native CPU module is not built")
N, D, R, C, K = 96, 24, 1000, 7, 6


class Threads:
    """A gather among threads."""

    def __init__(self, size):
        self.barrier, self.parts = threading.Barrier(size), [b""] * size

    def gather_of(self, rank):
        def gather(data):
            self.parts[rank] = data
            self.barrier.wait(60)
            parts = list(self.parts)
            self.barrier.wait(60)
            return parts

        return gather

    def run(self, work):
        """What work(rank, gather) returns for every rank."""

        def one(rank):
            try:
                return work(rank, self.gather_of(rank))
            except BaseException:
                self.barrier.abort()  # the others must not wait
                raise

        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(one, range(len(self.parts))))


def problem(neurons=R):
    generator = torch.Generator().manual_seed(0)
    x = normalize_inputs(torch.rand(N, D, generator=generator))
    y = torch.randint(C, (N,), generator=generator)
    weight = normalize_inputs(torch.rand(neurons, D, generator=generator))
    return x, y, weight, torch.rand(C, neurons, generator=generator) / 10, generator


def penalty_of(weight, output):
    generator = torch.Generator().manual_seed(1)
    parts = []
    for tensor in (weight, output):
        parts += [torch.rand(tensor.shape, generator=generator), tensor * 0.99]
    parts[0][::3] = 0
    parts[2][:, ::3] = 0
    return parts


def train(share, switch, *, distil=False, penalty=False, momentum=0.0, scan="auto", neurons=R, stop=None, epochs=6):
    """Weights, counts and statistics after some epochs; with a share by neurons those of the neurons here."""
    x, y, weight, output, generator = problem(neurons)
    parts = penalty_of(weight, output)
    a, b = 0, neurons
    if share is not None and share.by == "neurons":
        a, b = share.bounds[share.rank : share.rank + 2]
    weight, output, counts = weight[a:b].clone(), output[:, a:b].contiguous(), torch.zeros(b - a, dtype=torch.int64)
    engine = SDMLPEngine(weight, output, counts, k=K, gaba_switch=switch, momentum=momentum, temperature=2.0, lam=0.5,
                         threads=1, scan=scan, share=share)  # fmt: skip
    terms, stats = {}, []
    if penalty:
        held = [parts[0][a:b], parts[1][a:b], parts[2][:, a:b], parts[3][:, a:b]]
        terms["penalty"] = QuadraticPenalty(*(t.contiguous() for t in held), 0.3)
    for epoch in range(epochs):
        if distil and epoch == 2:
            terms["teacher"] = engine.make_teacher(x, torch.arange(0, neurons, 3))
        order = torch.randperm(N, generator=generator)
        stats.append(engine.train_epoch(x, y, order, 20, should_stop=stop and stop(share), **terms))
    return weight, output, counts, stats, engine.logits(x), engine.frequencies(x)


def together(size, by, *args, neurons=R, **options):
    """The same of `size` processes, put together."""
    results = Threads(size).run(
        lambda rank, gather: train(Share(gather, rank, size, by, neurons), *args, neurons=neurons, **options)
    )
    if by == "samples":
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0][:3], other[:3]))
        return results[0]
    weights, outputs, counts, stats, logits, frequencies = zip(*results)
    assert all(torch.equal(logits[0], other) for other in logits)
    return torch.cat(weights), torch.cat(outputs, 1), torch.cat(counts), stats[0], logits[0], torch.cat(frequencies)


def same(one, other):
    for a, b in zip((*one[:3], *one[4:]), (*other[:3], *other[4:])):
        assert torch.equal(a, b)
    for s, t in zip(one[3], other[3]):
        for name in ("loss", "ce", "kd_hidden", "kd_logits", "grad_norm", "active_per_row", "touched", "steps"):
            assert getattr(s, name) == getattr(t, name), name


CASES = {
    "top-k": {"switch": None},
    "all active, then lists": {"switch": 700.0},
    "distillation": {"switch": 300.0, "distil": True},
    "distillation and penalty": {"switch": 300.0, "distil": True, "penalty": True},
    "momentum": {"switch": 200.0, "momentum": 0.9},
    "exhaustive": {"switch": 300.0, "scan": "exhaustive"},
}


@pytest.mark.parametrize("by", ["samples", "neurons"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bitwise_as_one_process(case, size, by):
    options = dict(case)
    switch = options.pop("switch")
    one = train(None, switch, **options)
    other = together(size, by, switch, **options)
    same(one, other)
    assert other[3][0].exchanges > 0 and other[3][0].received > 0


@pytest.mark.parametrize("by", ["samples", "neurons"])
def test_certificates_prove_rows_of_a_part_too(by):
    stats = together(2, by, None, epochs=12)[3]
    assert stats[-1].certified > 0


@pytest.mark.parametrize("by", ["samples", "neurons"])
def test_what_stops_one_process_stops_all_at_the_same_step(by):
    """One is asked to stop in its first epoch; all take the same number of steps, and the weights agree."""
    asked = threading.Event()

    def stop(share):
        if share.rank != 1:
            return lambda: False
        return lambda: not asked.is_set() and (asked.set() or True)

    def work(rank, gather):
        x, y, weight, output, _ = problem()
        share = Share(gather, rank, 2, by, R)
        a, b = share.bounds[rank : rank + 2] if by == "neurons" else (0, R)
        weight, output = weight[a:b].clone(), output[:, a:b].contiguous()
        counts = torch.zeros(b - a, dtype=torch.int64)
        engine = SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, threads=1, share=share)
        order = torch.arange(N).repeat(400)
        return engine.train_epoch(x, y, order, 20, should_stop=stop(share)).steps

    first, second = Threads(2).run(work)
    assert first == second < 400 * N // 20


@pytest.mark.parametrize("by", ["samples", "neurons"])
def test_a_lost_process_leaves_the_weights_of_whole_steps(by):
    """The gather of rank 0 fails after some calls: what it raises comes out, and one process could go on from there."""

    class LostError(RuntimeError):
        pass

    def work(rank, gather):
        calls = iter(range(10**6))

        def failing(data):
            if next(calls) >= 7:
                raise LostError("rank 1 is lost")
            return gather(data)

        x, y, weight, output, _ = problem()
        share = Share(failing, rank, 2, by, R)
        a, b = share.bounds[rank : rank + 2] if by == "neurons" else (0, R)
        weight, output = weight[a:b].clone(), output[:, a:b].contiguous()
        counts = torch.zeros(b - a, dtype=torch.int64)
        engine = SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, threads=1, share=share)
        with pytest.raises(LostError):
            engine.train_epoch(x, y, torch.arange(N), 10)
        return a, b, weight, output, counts

    results = Threads(2).run(work)
    steps = 6 if by == "samples" else 2  # one call agrees on the epoch; then 1 or 3 calls a step
    x, y, weight, output, _ = problem()
    counts = torch.zeros(R, dtype=torch.int64)
    engine = SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, threads=1)
    engine.train_epoch(x, y, torch.arange(10 * steps), 10)
    for a, b, own, own_output, own_counts in results:
        assert torch.equal(own, weight[a:b]) and torch.equal(own_counts, counts[a:b])
        assert torch.equal(own_output, output[:, a:b])


@pytest.mark.parametrize("by", ["samples", "neurons"])
def test_different_work_is_an_error_in_every_process(by):
    def work(rank, gather):
        x, y, weight, output, _ = problem()
        share = Share(gather, rank, 2, by, R)
        a, b = share.bounds[rank : rank + 2] if by == "neurons" else (0, R)
        counts = torch.zeros(b - a, dtype=torch.int64)
        engine = SDMLPEngine(weight[a:b].clone(), output[:, a:b].contiguous(), counts, k=K, gaba_switch=None,
                             threads=1, share=share)  # fmt: skip
        with pytest.raises(RuntimeError, match="different samples, orders or losses"):
            engine.train_epoch(x, y, torch.arange(N - rank), 10)

    Threads(2).run(work)


def test_neuron_bounds_are_ends_of_whole_ranges():
    for neurons, size in ((1000, 2), (1000, 3), (10_000, 16), (4_000_000, 5), (100, 2)):
        bounds = neuron_bounds(neurons, size)
        words = (neurons + 63) // 64
        ends = {min(neurons, words * c // 16 * 64) for c in range(17)}
        assert bounds[0] == 0 and bounds[-1] == neurons and bounds == sorted(bounds) and set(bounds) <= ends
    assert neuron_bounds(4_000_000, 2)[1] == 2_000_000 // 64 * 64


def test_a_share_that_does_not_fit_the_weights_is_refused():
    _, _, weight, output, _ = problem()
    counts = torch.zeros(R, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight has 1000"):
        SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, share=Share(lambda d: [d], 0, 2, "neurons", R))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, share=Share(lambda d: [d], 2, 2, "samples", R))
    with pytest.raises(ValueError, match="backend='reference'"):
        SDMLPEngine(weight, output, counts, k=K, gaba_switch=None, backend="reference",
                    share=Share(lambda d: [d], 0, 1, "samples", R))  # fmt: skip
