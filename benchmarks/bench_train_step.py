"""SDMLPEngine against the eager training step (eager_step.py), on task 1 of Split CIFAR-10.

Ratios are per SSD step, B = 128, K = 10, n = 1000. An engine's call trains an epoch; eager's call is one step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import measure
import pytest
import torch
import workload
from eager_step import EagerSDMLP, EagerTrainer

from ssd_kernels import QuadraticPenalty, SDMLPEngine, testing

PAUSE = 0.03
SSD_TARGETS = {1_000: 13.0, 10_000: 60.0, 100_000: 800.0}


class EpochRunner:
    """Trains one epoch (or its first steps) per call, in a new order each time."""

    def __init__(
        self, engine: SDMLPEngine, task: int, teacher=None, penalty=None, steps: int | None = None, limit=None
    ):
        self.engine, self.teacher, self.penalty = engine, teacher, penalty
        self.x, self.y = workload.task(task, limit)
        self.count = len(self.x) if steps is None else min(len(self.x), steps * workload.BATCH)
        self.steps = -(-self.count // workload.BATCH)
        self.generator = torch.Generator().manual_seed(3)
        self.log = []

    def __call__(self) -> None:
        order = torch.randperm(len(self.x), generator=self.generator)[: self.count].contiguous()
        self.log.append(
            self.engine.train_epoch(self.x, self.y, order, workload.BATCH, teacher=self.teacher, penalty=self.penalty)
        )

    def note(self) -> str:
        late = self.log[-5:]
        rows = sum(stats.certified + stats.scanned for stats in late)
        parts = {}
        for stats in late:
            for phase, seconds in stats.seconds.items():
                parts[phase] = parts.get(phase, 0.0) + seconds / sum(s.steps for s in late) * 1e3
        phases = ", ".join(f"{phase} {ms:.3f}" for phase, ms in parts.items() if ms >= 0.001)
        share = {name: sum(getattr(stats, name) for stats in late) / rows for name in ("certified", "refreshed")}
        last = late[-1]
        return (
            f"certified {share['certified']:.1%}, refreshed {share['refreshed']:.1%}, scored per row {last.scored:.1f}"
            f", active per row {last.active_per_row:.1f}, touched per step {last.touched:.0f}; ms: {phases}"
        )


def eager(neurons: int, *, saturated: bool = True, teacher: bool = True, limit: int | None = None):
    """One eager step on the first batch of task 1, with the teacher evaluated each time, and with it cached."""
    weight, output, counts, switch = workload.after_task0(neurons, saturated=saturated, limit=limit)
    model, frozen = (EagerSDMLP(weight, output, counts, workload.K, switch) for _ in range(2))
    units = torch.arange(min(workload.UNITS, neurons))
    trainer = EagerTrainer(model, frozen if teacher else None, units)
    x, y = (part[: workload.BATCH] for part in workload.task(1, limit))
    cached = None
    if teacher:
        with torch.no_grad():
            h, logits = frozen.eval()(x)
            cached = h[:, units], logits
    return (lambda: trainer.step(x, y)), (lambda: trainer.step(x, y, cached))


def exact_gate(neurons: int, limit: int = 1500) -> Callable[[], None]:
    """Bitwise the same with certificates and without, before anything is timed."""

    def gate() -> None:
        states = []
        for scan in ("auto", "exhaustive"):
            engine, teacher = workload.engine_and_teacher(min(neurons, 10_000), limit=limit, scan=scan)
            run = EpochRunner(engine, 1, teacher, limit=limit)
            for _ in range(3):
                run()
            states.append(engine.state_dict())
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name

    return gate


@pytest.mark.parametrize("counters", ["saturated", "real"])
@pytest.mark.parametrize("neurons", [1_000, 10_000, 100_000])
def bench_train_step(neurons: int, counters: str, compare: Callable, smoke: bool) -> None:
    if smoke and (neurons > 1_000 or counters == "real"):
        pytest.skip("not a small size")
    if counters == "real" and neurons > 10_000:
        pytest.skip("counters of a real run exist for the widths that were trained")
    limit = 1500 if smoke else None
    engine, teacher = workload.engine_and_teacher(neurons, saturated=counters == "saturated", limit=limit)
    auto = EpochRunner(engine, 1, teacher, limit=limit)
    for _ in range(6):
        auto()
    other, _ = workload.engine_and_teacher(neurons, saturated=counters == "saturated", limit=limit, scan="exhaustive")
    exhaustive = EpochRunner(other, 1, teacher, steps=20 if neurons < 100_000 else 4, limit=limit)
    step, cached_step = eager(neurons, saturated=counters == "saturated", limit=limit)
    targets = {"engine": ("eager", SSD_TARGETS[neurons])}
    if neurons == 10_000:
        targets["engine, exhaustive"] = ("eager", 8.0)
    notes: list[str] = [workload.embeddings()[2]]
    table = compare(
        f"SSD step, R = {neurons}, {counters} counters",
        {"eager": step, "eager, cached teacher": cached_step, "engine": auto, "engine, exhaustive": exhaustive},
        baseline="eager",
        gate=exact_gate(neurons),
        targets=targets if counters == "saturated" else None,
        seconds=40,
        rounds=30,
        steps={"engine": auto.steps, "engine, exhaustive": exhaustive.steps},
        pause=PAUSE,
        notes=notes,
    )
    table.notes.append(auto.note())
    gc.collect()


def bench_train_step_one_million_neurons(compare: Callable, smoke: bool) -> None:
    if smoke:
        pytest.skip("not a small size")
    runs = {}
    for neurons in (10_000, 1_000_000):
        engine, teacher = workload.engine_and_teacher(neurons)
        run = EpochRunner(engine, 1, teacher)
        for _ in range(10):
            run()
        runs[f"engine, R = {neurons}"] = run
    table = compare(
        "SSD step, R = 1 000 000 against R = 10 000, saturated counters, epochs without a scan",
        runs,
        baseline="engine, R = 10000",
        gate=exact_gate(10_000),
        rounds=25,
        steps={name: run.steps for name, run in runs.items()},
        pause=PAUSE,
    )
    table.targets["engine, R = 1000000"] = ("engine, R = 10000", 0.5)
    for name, run in runs.items():
        free = [stats for stats in run.log[10:] if stats.scanned + stats.refreshed == 0]
        table.notes.append(
            f"{name}: {len(free)} of {len(run.log) - 10} epochs without a scan; all epochs: "
            f"{table.timings[name].median * 1e3:.3f} ms; {run.note()}"
        )
        if len(free) >= 2:
            table.timings[name] = measure.timing([sum(stats.seconds.values()) / stats.steps for stats in free])


def bench_train_step_all_active(compare: Callable, smoke: bool) -> None:
    neurons, limit = (1_000, 1500) if smoke else (10_000, None)
    model = workload.fresh_model(neurons)
    switch = 1e12  # no counter gets near it: the phase lasts as long as it is measured
    run = EpochRunner(SDMLPEngine(*model, k=workload.K, gaba_switch=switch), 0, limit=limit)
    for _ in range(3):
        run()
    trainer = EagerTrainer(EagerSDMLP(*workload.fresh_model(neurons), workload.K, switch), None, None)
    x, y = (part[: workload.BATCH] for part in workload.task(0, limit))
    table = compare(
        f"CE-only step with every neuron active, R = {neurons}",
        {"eager": lambda: trainer.step(x, y), "engine": run},
        baseline="eager",
        gate=exact_gate(1_000),
        targets={"engine": ("eager", 15.0)},
        rounds=30,
        steps={"engine": run.steps},
        pause=PAUSE,
    )
    table.notes.append(run.note())


def bench_train_step_many_active(compare: Callable, smoke: bool) -> None:
    """Between the all-active phase and saturated counters: about half of the neurons of a row are active."""
    neurons, limit = (1_000, 1500) if smoke else (10_000, None)
    weight, output, counts, _ = workload.after_task0(neurons, limit=limit, saturated=False, epochs=3)
    switch = 1e12
    counts.fill_(int(0.85 * switch))
    run = EpochRunner(SDMLPEngine(weight, output, counts, k=workload.K, gaba_switch=switch), 0, steps=20, limit=limit)
    for _ in range(3):
        run()
    trainer = EagerTrainer(EagerSDMLP(weight, output, counts, workload.K, switch), None, None)
    x, y = (part[: workload.BATCH] for part in workload.task(0, limit))
    table = compare(
        f"CE-only step between all-active and sparse, R = {neurons}",
        {"eager": lambda: trainer.step(x, y), "engine": run},
        baseline="eager",
        gate=exact_gate(1_000),
        rounds=30,
        steps={"engine": run.steps},
        pause=PAUSE,
    )
    table.notes.append(run.note())


def bench_train_step_scan(compare: Callable, smoke: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    neurons = 1_000 if smoke else 10_000
    weight, output, counts, switch = workload.after_task0(neurons, limit=1500 if smoke else None)
    batches = workload.task(1)[0][: 20 * workload.BATCH].split(workload.BATCH)
    contenders = {
        "matmul + topk(K+1)": lambda: [torch.topk(x @ weight.T, workload.K + 1) for x in batches],
        "matmul": lambda: [x @ weight.T for x in batches],
    }
    targets = {}
    for level, target in (("avx2", None), ("avx512", 1.7), ("avx512bf16", 3.0)):
        if level not in testing.simd_levels():
            continue
        monkeypatch.setenv("SSD_SIMD", level)
        engine = SDMLPEngine(weight, output, counts, k=workload.K, gaba_switch=switch, scan="exhaustive")
        name = f"engine.logits, {level}"
        contenders[name] = lambda engine=engine: [engine.logits(x) for x in batches]
        if target:
            targets[name] = ("matmul + topk(K+1)", target)
    monkeypatch.delenv("SSD_SIMD", raising=False)
    compare(
        f"scan of {len(batches)} batches of {workload.BATCH} rows, R = {neurons} (the engine's: winners and logits)",
        contenders,
        baseline="matmul + topk(K+1)",
        gate=exact_gate(1_000),
        targets=targets,
        rounds=20,
        steps=dict.fromkeys(contenders, len(batches)),
        pause=PAUSE,
    )


def bench_train_step_penalty(compare: Callable, smoke: bool) -> None:
    """SSD + EWC: every row with importance moves in every step."""
    neurons, limit = (1_000, 1500) if smoke else (10_000, None)
    runs = {}
    for name in ("engine, SSD", "engine, SSD + EWC", "engine, SSD + EWC on all rows"):
        engine, teacher = workload.engine_and_teacher(neurons, limit=limit)
        penalty = None
        if "EWC" in name:
            importance = [torch.rand_like(part) * 1e-3 for part in (engine.weight, engine.output_weight)]
            if "all rows" not in name:  # a Fisher estimate is zero where no sample of the earlier tasks was active
                silent = sum(engine.frequencies(workload.task(index, limit)[0]) for index in (0, 1)) == 0
                importance[0][silent] = 0
                importance[1][:, silent] = 0
            penalty = QuadraticPenalty(
                importance[0], engine.weight.clone(), importance[1], engine.output_weight.clone(), 100.0
            )
        runs[name] = EpochRunner(
            engine, 2, None if smoke else engine.make_teacher(workload.task(2)[0], teacher.units), penalty, limit=limit
        )
        for _ in range(6):
            runs[name]()
    step, _ = eager(neurons, limit=limit)
    table = compare(
        f"SSD + EWC step, R = {neurons} (wanted: at most 1.5 ms on quiet cores)",
        {"eager SSD": step, **runs},
        baseline="eager SSD",
        gate=exact_gate(1_000),
        rounds=20,
        steps={name: run.steps for name, run in runs.items()},
        pause=PAUSE,
    )
    table.notes.extend(f"{name}: {run.note()}" for name, run in runs.items())
