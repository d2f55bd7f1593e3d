"""Resuming the engine with momentum, the floating-point mode, calls at the same time, very large batches."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from ssd_kernels import SDMLPEngine, normalize_inputs, sparse_update_


def problem(neurons: int = 400, dim: int = 8, classes: int = 3, samples: int = 48):
    random = torch.Generator().manual_seed(0)
    x = normalize_inputs(torch.rand(samples, dim, generator=random)).contiguous()
    y = torch.randint(classes, (samples,), generator=random)
    weight = normalize_inputs(torch.rand(neurons, dim, generator=random)).contiguous()
    output = torch.rand(classes, neurons, generator=random) / 20
    return (weight, output, torch.zeros(neurons, dtype=torch.int64)), x, y


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compares bits: torch.equal takes denormal numbers for 0 where they are flushed."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("momentum", [0.1, 0.9])
@pytest.mark.parametrize("scan", ["auto", "exhaustive"])
def test_a_resumed_run_with_momentum_is_bitwise_the_same(momentum, scan) -> None:
    """Rows without a velocity stay as they are, resumed or not, though the projection would change their last bits."""
    options = {"k": 3, "gaba_switch": None, "momentum": momentum, "scan": scan}
    tensors, x, y = problem()
    tensors[0].mul_(1 + 1e-6)  # off the projection by bits: a row that moves shows it
    whole, parts = (SDMLPEngine(*(t.clone() for t in tensors), **options) for _ in range(2))
    order = torch.Generator().manual_seed(1)
    for epoch in range(60):
        if epoch > 3:  # a few samples are left: the velocities of most rows decay, to 0 where momentum is small
            x, y = x[:8].contiguous(), y[:8].contiguous()
        turn = torch.randperm(len(x), generator=order)
        whole.train_epoch(x, y, turn, 8)
        if epoch % 7 == 2:
            state = parts.state_dict()
            parts = SDMLPEngine(*(t.clone() for t in tensors), **options)
            parts.load_state_dict(state)
        parts.train_epoch(x, y, turn, 8)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, parts.state_dict()[name]), (epoch, name)
    still = (whole.state_dict()["weight_velocity"] == 0).all(1)
    assert (
        still.any() and not still.all() and not torch.equal(whole.weight[still], normalize_inputs(whole.weight[still]))
    )


@pytest.fixture
def flushed():
    """The processor's flag for flushing denormal numbers, put back at the end."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    torch.set_flush_denormal(False)
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2])
def test_flushing_denormal_numbers_changes_no_bit_of_the_engine(threads, flushed) -> None:
    results = []
    for flush in (False, True):
        tensors, x, y = problem(samples=64)
        tensors[1].fill_(1e-39)  # outputs, and what V becomes where its gradient is small, are denormal
        engine = SDMLPEngine(*tensors, k=3, gaba_switch=None, threads=threads, momentum=0.2)
        engine.logits(x)  # the threads exist before the flag is set
        flushed(flush)
        logits = engine.logits(x)
        engine.train_epoch(x, y, torch.arange(64), 16)
        flushed(False)
        results.append((logits, engine.weight, engine.output_weight))
    assert results[0][0].abs().max() < 1.2e-38 and (results[0][0] > 0).any()
    assert all(same_bits(a, b) for a, b in zip(*results))


def test_flushing_denormal_numbers_changes_no_bit_of_an_operation(flushed) -> None:
    results = []
    for flush in (False, True):
        weight, grad = torch.full((4000, 64), 1e-39), torch.full((4000, 64), -1e-39)
        flushed(flush)
        sparse_update_(weight, torch.arange(4000), grad, lr=1.0, renormalise=False)
        flushed(False)
        results.append(weight)
    assert (results[0] > 1.5e-39).all() and same_bits(*results)


def test_one_call_at_a_time() -> None:
    """A second thread, or a callback of the call itself, is refused; the first call ends as if alone."""
    tensors, x, y = problem()
    engine = SDMLPEngine(*tensors, k=3, gaba_switch=None)
    order, refused, entered = torch.arange(48).repeat(4000), [], threading.Event()

    def other() -> None:
        entered.wait(30)
        try:
            engine.logits(x)
        except RuntimeError as error:
            refused.append(str(error))

    def should_stop() -> bool:
        entered.set()
        thread.join(30)
        with pytest.raises(RuntimeError, match="the engine is in use by another call: one at a time"):
            engine.frequencies(x)
        return True

    thread = threading.Thread(target=other)
    thread.start()
    engine.train_epoch(x, y, order, 8, should_stop=should_stop)
    thread.join(30)
    assert refused == ["the engine is in use by another call: one at a time"]
    assert engine.logits(x).shape == (48, 3)


@pytest.mark.slow
def test_more_chunks_than_tickets() -> None:
    """A batch of more than 524 280 rows with two threads ends, and is the same as with one."""
    tensors, x, y = problem(neurons=12, dim=1, classes=1, samples=4)
    order, results = torch.arange(4).repeat(140_000), []
    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(300)  # a hang cannot be interrupted otherwise
    for threads in (1, 2):
        engine = SDMLPEngine(*(t.clone() for t in tensors), k=1, gaba_switch=None, threads=threads)
        assert engine.train_epoch(x, y * 0, order, len(order)).steps == 1
        results.append(engine.state_dict())
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
