"""SDMLPEngine against the eager step on states it was not tuned on (states.py): every epoch from the 4th on counts.

The ratios are of means, since a refresh in one epoch of five is a cost too; medians stand beside them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import states
import torch
import workload
from eager_step import EagerSDMLP, EagerTrainer

from ssd_kernels import SDMLPEngine, top_n

FIRST, LAST = 4, 12  # epochs of task 1 that count, from 1 on
TARGETS = {  # against eager, two quiet cores
    ("saturated", 1_000): 15.0,
    ("saturated", 10_000): 80.0,
    ("saturated", 100_000): 800.0,
    ("own", 10_000): 20.0,
}


class Epochs:
    """Trains one epoch of task 1 per call, in a new order each time."""

    def __init__(self, state: states.State, neurons: int, saturated: bool, **options) -> None:
        self.engine = SDMLPEngine(*state.model(saturated), k=workload.K, gaba_switch=state.switch, **options)
        self.x, self.y = state.tasks[1]
        units = top_n(self.engine.frequencies(state.tasks[0][0]), min(workload.UNITS, neurons))
        self.teacher = self.engine.make_teacher(self.x, units)
        self.steps = -(-len(self.x) // workload.BATCH)
        self.generator = torch.Generator().manual_seed(3)
        self.log = []

    def __call__(self) -> None:
        order = torch.randperm(len(self.x), generator=self.generator)
        self.log.append(self.engine.train_epoch(self.x, self.y, order, workload.BATCH, teacher=self.teacher))

    def note(self) -> str:
        """What happened in the epochs that count: rows by how they were found, and milliseconds a step by phase."""
        late = self.log[FIRST - 1 :]
        steps, parts = sum(stats.steps for stats in late), {}
        for stats in late:
            for phase, seconds in stats.seconds.items():
                parts[phase] = parts.get(phase, 0.0) + seconds / steps * 1e3
        rows = sum(stats.certified + stats.scanned for stats in late)
        found = ", ".join(
            f"{name} {sum(getattr(stats, name) for stats in late) / len(late):.0f} rows an epoch"
            for name in ("refreshed", "scanned")
        )
        return (
            f"certified {sum(stats.certified for stats in late) / rows:.2%}, {found}; active per row "
            f"{late[-1].active_per_row:.1f}, touched per step {late[-1].touched:.0f}; ms: "
            + ", ".join(f"{phase} {ms:.3f}" for phase, ms in parts.items() if ms >= 0.001)
        )


def eager(state: states.State, neurons: int, saturated: bool) -> Callable[[], None]:
    """One eager step on the first batch of task 1, its teacher evaluated each time."""
    model, frozen = (EagerSDMLP(*state.model(saturated), workload.K, state.switch) for _ in range(2))
    trainer = EagerTrainer(model, frozen, torch.arange(min(workload.UNITS, neurons)))
    x, y = (part[: workload.BATCH] for part in state.tasks[1])
    return lambda: trainer.step(x, y)


@pytest.mark.parametrize("counters", ["saturated", "own"])
@pytest.mark.parametrize("neurons", [1_000, 10_000, 100_000])
@pytest.mark.parametrize("name", states.NAMES)
def bench_epochs_from_the_fourth_on(name: str, neurons: int, counters: str, compare: Callable, smoke: bool) -> None:
    if smoke and (neurons > 1_000 or (counters == "saturated" and name != "tuned")):
        pytest.skip("not a small size")
    if name != "tuned" and not os.environ.get("SSD_DATA_DIR"):
        pytest.skip("SSD_DATA_DIR does not name the embeddings")
    limit, saturated = 1_500 if smoke else None, counters == "saturated"
    state = states.load(name, neurons, limit)
    run = Epochs(state, neurons, saturated)

    def gate() -> None:
        few = first_samples(state, 1_000)
        both = [Epochs(few, neurons, saturated, scan=scan) for scan in ("auto", "exhaustive")]
        for _ in range(3):
            for one in both:
                one()
        for key, value in both[0].engine.state_dict().items():
            assert torch.equal(value, both[1].engine.state_dict()[key]), key

    target = TARGETS.get((counters, neurons))
    table = compare(
        f"SSD step, state {name}, R = {neurons}, {counters} counters, epochs {FIRST} to {LAST}, by means",
        {"eager": eager(state, neurons, saturated), "engine": run},
        baseline="eager",
        gate=gate,
        targets={"engine": ("eager", target)} if target else None,
        seconds=600,
        warmup=FIRST - 1,
        rounds=LAST - FIRST + 1,
        steps={"engine": run.steps},
        pause=0.03,
        by="mean",
    )
    table.notes.append(run.note())


def first_samples(state: states.State, samples: int) -> states.State:
    """The state with so many samples of each task."""
    tasks = [(x[:samples].contiguous(), y[:samples].contiguous()) for x, y in state.tasks]
    return states.State(state.weight, state.output, state.counts, state.switch, tasks)
