"""Random calls of the public operations, many of them malformed: each gives the specified result or a clear error.

    python tests/fuzz/operations.py                       10 000 cases of each target
    python tests/fuzz/operations.py --cases 500 --only gaba_linear --first 1200

A case is made from its number alone. It ends in one of two ways: the arguments pass the first validation and the result
of the native kernels is that of the reference; or an exception of a kind that the operation documents. Anything else is
a finding, and is printed with the number that repeats it. Printed per target: cases, seconds, the share that passed.
The file is long because it holds a target for every operation.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import ssd_kernels as kernels
from ssd_kernels import QuadraticPenalty, Rows, SDMLPEngine, Teacher, TopK

REFUSALS = (ValueError, IndexError, FloatingPointError)
MOST_TEMPERATURE = 1e4  # T^2 KL: far beyond the activations the KL is below the rounding of fp64, in the reference too
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MALFORMED = 0.4  # share of the cases in which one argument is spoiled
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1, 0, 1.5, True, 1e39, 1e-50, 10**12, None, "1", 2**31, -0.0)


@dataclass
class Case:
    """One call: positional arguments, options, and which of them may be spoiled in which way."""

    chance: random.Random
    arguments: dict[str, object] = field(default_factory=dict)

    def size(self, most: int = 12) -> int:
        return self.chance.choice((1, 2, 3, self.chance.randint(1, most)))

    def dtype(self) -> torch.dtype:
        return self.chance.choice(DTYPES)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32, low: float = -1.0) -> Tensor:
        generator = torch.Generator().manual_seed(self.chance.randrange(2**31))
        values = (torch.rand(*shape, generator=generator) * (1 - low) + low).to(dtype)
        if values.dim() == 2 and self.chance.random() < 0.2:  # another layout of the same numbers
            values = values.t().contiguous().t()
        return values

    def integers(self, count: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor([self.chance.randrange(below) for _ in range(count)], dtype=dtype)

    def distinct(self, count: int, below: int) -> list[int]:
        return sorted(self.chance.sample(range(below), min(count, below)))

    def topk(self, batch: int, neurons: int, dtype: torch.dtype) -> TopK:
        k = self.chance.randint(1, min(neurons, 6))
        indices = [self.chance.sample(range(neurons), k) for _ in range(batch)]
        return TopK(self.tensor(batch, k, dtype=dtype, low=0).contiguous(),
                    torch.tensor(indices, dtype=torch.int32).reshape(batch, k),
                    torch.zeros(batch, dtype=dtype))  # fmt: skip

    def rows(self, batch: int, neurons: int, dtype: torch.dtype) -> Rows:
        each = [self.distinct(self.chance.randint(0, min(neurons, 6)), neurons) for _ in range(batch)]
        offsets = torch.tensor([0, *map(len, each)]).cumsum(0)
        indices = torch.tensor([i for row in each for i in row], dtype=torch.int32)
        return Rows(self.tensor(len(indices), dtype=dtype, low=0), indices, offsets, torch.zeros(batch, dtype=dtype))

    def spoil(self) -> None:
        """Makes one argument, or one part of a struct, wrong in some way."""
        name = self.chance.choice(list(self.arguments))
        self.arguments[name] = self.spoiled(self.arguments[name])

    def spoiled(self, value: object) -> object:
        if isinstance(value, TopK | Rows):
            part = self.chance.choice(value._fields[: 3 if isinstance(value, Rows) else 2])
            return value._replace(**{part: self.spoiled(getattr(value, part))})
        if isinstance(value, Tensor):
            return self.spoiled_tensor(value)
        if isinstance(value, str):
            return self.chance.choice(("", "sideways", None, 3))
        return self.chance.choice(NUMBERS)

    def spoiled_tensor(self, value: Tensor) -> object:
        kinds: list[Callable[[], object]] = [
            lambda: value.to("meta"),
            lambda: value.numpy() if value.dtype != torch.bfloat16 else None,
            lambda: None,
            lambda: value[..., :0],
            lambda: value[:-1] if value.dim() else value[None],
            lambda: value[None],
            lambda: value.reshape(-1),
            lambda: value.to_sparse(),
            lambda: value.to(self.chance.choice((torch.int32, torch.int64, torch.bool, torch.float64, torch.float16))),
            lambda: value.to(torch.float32).to(torch.float8_e4m3fn),
            lambda: value[:1].expand(value.shape),
        ]
        if value.numel():
            kinds += [lambda: self.planted(value)] * 8
        return self.chance.choice(kinds)()

    def planted(self, value: Tensor) -> Tensor:
        """One number of a copy out of range."""
        value = value.clone()
        flat = value.view(-1) if value.is_contiguous() else value
        numbers = (float("nan"), float("inf"), -float("inf")) if value.is_floating_point() else (
            -1, 10**8, 2**31 - 1, -(2**31))  # fmt: skip
        number = self.chance.choice(numbers)
        if flat.dim() == 1:
            flat[self.chance.randrange(len(flat))] = number
        else:
            flat[self.chance.randrange(len(flat))] = number
        return value


def agree(ours: object, theirs: object) -> bool:
    """The same structure of tensors within the rounding of 16-bit types, NaN where NaN is."""
    if isinstance(ours, Tensor):
        assert isinstance(theirs, Tensor)
        if ours.is_meta or theirs.is_meta:
            return ours.shape == theirs.shape
        coarse = 2e-2 if ours.dtype in (torch.bfloat16, torch.float16) else 1e-3
        return ours.shape == theirs.shape and torch.allclose(
            ours.double(), theirs.double(), rtol=coarse, atol=coarse, equal_nan=True
        )
    return all(agree(a, b) for a, b in zip(ours, theirs, strict=True))


def both(operation: Callable, arguments: dict) -> bool:
    """Calls the native kernels, then the reference."""
    return agree(operation(**arguments, backend="auto"), operation(**arguments, backend="reference"))


def topk_linear(case: Case) -> Callable[[], bool]:
    neurons, inputs, dtype = case.size(30), case.size(), case.dtype()
    case.arguments = {"x": case.tensor(case.size(), inputs, dtype=dtype),
                      "weight": case.tensor(neurons, inputs, dtype=dtype),
                      "k": case.chance.randint(1, neurons)}  # fmt: skip

    def call() -> bool:
        # Scores that tie in one order of sums may not in another: the values agree, the winners need not.
        ours, theirs = (kernels.topk_linear(**case.arguments, backend=name) for name in ("auto", "reference"))
        return agree((ours.values, ours.threshold), (theirs.values, theirs.threshold))

    return call


def topk_linear_choice(case: Case) -> Callable[[], bool]:
    """All other options: bias, scale, rows or groups, magnitudes, normalised inputs and weights, inhibition."""
    neurons, inputs, dtype = 6 * case.size(6), case.size(), case.dtype()
    pick, groups = case.chance.choice, case.chance.choice((1, 1, 2, 3))
    rows = torch.tensor(case.distinct(case.chance.randint(3, neurons), neurons))
    if groups > 1 or case.chance.random() < 0.5:
        rows = None
    plain = groups == 1 and case.chance.random() < 0.5
    case.arguments = {
        "x": case.tensor(case.size(), inputs, dtype=dtype), "weight": case.tensor(neurons, inputs, dtype=dtype),
        "k": groups * case.chance.randint(1, (neurons if rows is None else len(rows)) // groups),
        "bias": pick((None, case.tensor(neurons, dtype=dtype))),
        "scale": pick((None, case.tensor(neurons, dtype=dtype, low=0.1))), "rows": rows, "groups": groups,
        "activation": pick(("relu", "none") if plain else ("relu", "none", "abs")),
        "normalize": pick(("none", "input", "both")),
    }  # fmt: skip
    if case.arguments["activation"] != "abs" and groups == 1:
        case.arguments["inhibition"] = pick((False, True))
    return topk_call(case)


def topk_call(case: Case) -> Callable[[], bool]:
    def call() -> bool:
        # Scores that tie in one order of sums may not in another: the sizes agree, the winners need not.
        ours, theirs = (kernels.topk_linear(**case.arguments, backend=name) for name in ("auto", "reference"))
        sizes = [(top.values.abs() if top.values.is_floating_point() else top.values) for top in (ours, theirs)]
        return agree((sizes[0], ours.threshold), (sizes[1], theirs.threshold))

    return call


def rows_agree(ours: Rows, theirs: Rows, neurons: int, edge: Tensor) -> bool:
    """The same entries, but for activations within rounding of the edge, which either may have left out."""
    shape = (len(ours.offsets) - 1, neurons)
    if not all(field.device.type == "cpu" for field in (*ours, *theirs)):
        return all(a.device == b.device and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    found, values = torch.zeros(2, *shape, dtype=torch.bool), torch.zeros(2, *shape, dtype=torch.float64)
    for at, rows in enumerate((ours, theirs)):
        sample = torch.repeat_interleave(torch.arange(shape[0]), rows.offsets.diff())
        place = sample * shape[1] + rows.indices.long()
        assert bool((place.diff() > 0).all()), "indices that do not ascend, or twice the same"
        found[at, sample, rows.indices.long()] = True
        values[at, sample, rows.indices.long()] = rows.values.double()
    one = found[0] != found[1]
    return agree(values[:, ~one][0].to(ours.values.dtype), values[:, ~one][1].to(ours.values.dtype)) and agree(
        values.sum(0)[one].to(ours.values.dtype), edge.double().expand(shape)[one].to(ours.values.dtype)
    )


def threshold_linear(case: Case) -> Callable[[], bool]:
    neurons, inputs, dtype = case.size(30), case.size(), case.dtype()
    pick = case.chance.choice
    case.arguments = {
        "x": case.tensor(case.size(), inputs, dtype=dtype), "weight": case.tensor(neurons, inputs, dtype=dtype),
        "threshold": pick((0.0, case.chance.random(), case.tensor(neurons, dtype=case.dtype(), low=0))),
        "bias": pick((None, case.tensor(neurons, dtype=dtype))),
        "scale": pick((None, case.tensor(neurons, dtype=dtype, low=0.1))),
    }  # fmt: skip

    def call() -> bool:
        ours, theirs = (kernels.threshold_linear(**case.arguments, backend=name) for name in ("auto", "reference"))
        edge = torch.as_tensor(case.arguments["threshold"])
        same = rows_agree(ours, theirs, len(case.arguments["weight"]), edge)
        return same and agree(ours.threshold, theirs.threshold)

    return call


def batch_topk_linear(case: Case) -> Callable[[], bool]:
    threshold_linear(case)
    neurons = len(case.arguments["weight"])
    del case.arguments["threshold"]
    case.arguments["k"] = case.chance.randint(1, neurons)

    def call() -> bool:
        ours, theirs = (kernels.batch_topk_linear(**case.arguments, backend=name) for name in ("auto", "reference"))
        same = rows_agree(ours, theirs, len(case.arguments["weight"]), ours.threshold[:, None])
        return same and agree(ours.threshold, theirs.threshold)

    return call


def normalize_inputs(case: Case) -> Callable[[], bool]:
    shape, dtype = [case.size() for _ in range(case.chance.randint(1, 3))], case.dtype()
    scale = case.chance.choice((1.0, 1e-3, 1e4) if dtype == torch.float16 else (1.0, 1e-3, 1e20, 1e37))
    case.arguments = {"x": case.tensor(*shape, dtype=dtype) * scale, "eps": 1e-12}

    def call() -> bool:
        ours, x = kernels.normalize_inputs(**case.arguments), case.arguments["x"]
        if x.is_meta or not bool(torch.isfinite(x).all()):
            return ours.shape == x.shape
        wide = torch.relu(x.double())
        return agree(ours, (wide / wide.norm(dim=-1, keepdim=True).clamp_min(case.arguments["eps"])).to(x.dtype))

    return call


def gaba_linear(case: Case) -> Callable[[], bool]:
    neurons, inputs, dtype = case.size(30) + 1, case.size(), case.dtype()
    case.arguments = {"x": case.tensor(case.size(), inputs, dtype=dtype),
                      "weight": case.tensor(neurons, inputs, dtype=dtype),
                      "k": case.chance.randint(1, neurons - 1), "g": case.tensor(neurons)}  # fmt: skip
    return lambda: both(kernels.gaba_linear, case.arguments)


def gaba_linear_rows(case: Case) -> Callable[[], bool]:
    gaba_linear(case)

    def call() -> bool:
        ours, dense = (kernels.gaba_linear(**case.arguments, output=form) for form in ("rows", "dense"))
        if dense.is_meta:
            return bool(ours.values.is_meta)
        kept = ~(dense <= 0)  # NaN is kept
        return torch.equal(ours.offsets[1:], kept.reshape(-1, kept.shape[-1]).sum(-1).cumsum(0)) and agree(
            ours.values, dense[kept]
        )

    return call


def activations(case: Case, batch: int, neurons: int, dtype: torch.dtype, dense: bool = True) -> Tensor | TopK | Rows:
    kind = case.chance.randrange(3 if dense else 2)
    if kind == 2:
        return case.tensor(batch, neurons, dtype=dtype, low=-0.5)
    return (case.topk, case.rows)[kind](batch, neurons, dtype)


def sparse_linear(case: Case) -> Callable[[], bool]:
    batch, neurons, dtype = case.size(), case.size(30), case.dtype()
    case.arguments = {"activations": activations(case, batch, neurons, dtype, dense=False),
                      "weight": case.tensor(case.size(), neurons, dtype=dtype)}  # fmt: skip
    return lambda: both(kernels.sparse_linear, case.arguments)


def sparse_update(case: Case) -> Callable[[], bool]:
    neurons, inputs, dtype = case.size(30), case.size(), case.dtype()
    rows = torch.tensor(case.distinct(case.size(), neurons))
    case.arguments = {"weight": case.tensor(neurons, inputs, dtype=dtype), "rows": rows,
                      "grad_rows": case.tensor(len(rows), inputs, dtype=dtype), "lr": case.chance.random(),
                      "scale": case.chance.random(), "max_norm": case.chance.choice((None, 1.0))}  # fmt: skip

    def call() -> bool:
        weight, results = case.arguments["weight"], []
        for backend in ("auto", "reference"):
            given = weight.clone() if isinstance(weight, Tensor) and not shares_memory(weight) else weight
            kernels.sparse_update_(**(case.arguments | {"weight": given}), backend=backend)
            results.append(given)
        return agree(*results)

    return call


def shares_memory(tensor: Tensor) -> bool:
    return 0 in tensor.stride() and tensor.numel() > 1


def hidden_pair(case: Case, batch: int, neurons: int, dtype: torch.dtype) -> dict:
    units = torch.tensor(case.chance.sample(range(neurons), case.chance.randint(1, neurons)))
    return {"hidden": activations(case, batch, neurons, dtype), "units": units,
            "teacher_hidden": activations(case, batch, neurons, dtype),
            "temperature": case.chance.choice((0.5, 2.0, 8.0)),
            "kl": case.chance.choice(("forward", "reverse"))}  # fmt: skip


def distill_hidden(case: Case) -> Callable[[], bool]:
    case.arguments = hidden_pair(case, case.size(), case.size(30), case.dtype())
    return lambda: both(kernels.distill_hidden, case.arguments)


def distill_loss(case: Case) -> Callable[[], bool]:
    batch, classes, dtype = case.size(), case.size() + 1, case.dtype()
    case.arguments = {
        "logits": case.tensor(batch, classes, dtype=dtype), "labels": case.integers(batch, classes),
        "teacher_logits": case.tensor(batch, classes, dtype=dtype), "alpha": case.chance.random(),
        "lam": case.chance.random(), **hidden_pair(case, batch, case.size(30), dtype),
    }  # fmt: skip
    return lambda: both(kernels.distill_loss, case.arguments)


def activation_counts(case: Case) -> Callable[[], bool]:
    neurons = case.size(30)
    case.arguments = {"activations": activations(case, case.size(), neurons, case.dtype()), "neurons": neurons}
    return lambda: both(kernels.activation_counts, case.arguments)


def top_n(case: Case) -> Callable[[], bool]:
    neurons = case.size(30)
    case.arguments = {"counts": case.integers(neurons, 9), "n": case.chance.randint(0, neurons)}
    return lambda: both(kernels.top_n, case.arguments)


def engine(case: Case) -> Callable[[], bool]:
    """Two epochs with a teacher or a penalty made by hand; with certificates and without, bit for bit."""
    neurons, inputs, classes, samples = case.size(40) + 2, case.size(), case.size(4), case.size(20)
    unit = kernels.normalize_inputs
    weight = unit(case.tensor(neurons, inputs, low=0)).contiguous()
    output = case.tensor(classes, neurons, low=0).contiguous()
    units = torch.tensor(case.distinct(case.size(), neurons))
    taught = case.rows(samples, len(units), torch.float32)
    numbers = {name: (case.tensor(neurons, inputs, low=0) if name.startswith("weight") else
                      case.tensor(classes, neurons, low=0)).contiguous() for name in (
        "weight_importance", "weight_anchor", "output_importance", "output_anchor")}  # fmt: skip
    case.arguments = {
        "weight": weight, "output_weight": output, "counts": case.integers(neurons, 50),
        "k": case.chance.randint(1, neurons - 1),
        "gaba_switch": case.chance.choice((None, 30.0, 1e9)), "lr": 0.05, "momentum": case.chance.choice((0.0, 0.9)),
        "temperature": case.chance.choice((1e-3, 2.0)), "kl": case.chance.choice(("forward", "reverse")),
        "x": unit(case.tensor(samples, inputs, low=0)).contiguous(), "y": case.integers(samples, classes),
        "order": case.integers(case.size(40), samples), "batch_size": case.size(),
        "logits": case.tensor(samples, classes).contiguous(), "units": units, "values": taught.values,
        "indices": units[taught.indices.long()].to(torch.int32), "offsets": taught.offsets,
        "coef": case.chance.random(), **numbers,
    }  # fmt: skip
    attached = case.chance.choice(("nothing", "teacher", "penalty", "both"))

    def call() -> bool:
        results = []
        for scan in ("auto", "exhaustive"):
            given = {
                n: v.clone() if isinstance(v, Tensor) and not v.is_sparse else v for n, v in case.arguments.items()
            }
            take = lambda *names, of=given: {name: of[name] for name in names}  # noqa: E731
            student = SDMLPEngine(**take("weight", "output_weight", "counts", "k", "gaba_switch", "lr", "momentum",
                                         "temperature", "kl"), scan=scan, threads=1)  # fmt: skip
            teacher = (
                Teacher(**take("logits", "units", "values", "indices", "offsets"))
                if attached in ("teacher", "both")
                else None
            )
            penalty = QuadraticPenalty(**take(*numbers, "coef")) if attached in ("penalty", "both") else None
            for _ in range(2):
                student.train_epoch(**take("x", "y", "order", "batch_size"), teacher=teacher, penalty=penalty)
            student.load_state_dict(student.state_dict())
            results.append(student.state_dict())
        finite = all(bool(torch.isfinite(t).all()) for t in results[0].values())
        return finite and all(torch.equal(results[0][name], results[1][name]) for name in results[0])

    return call


TARGETS: dict[str, Callable[[Case], Callable[[], bool]]] = {
    each.__name__: each for each in (
        topk_linear, topk_linear_choice, threshold_linear, batch_topk_linear, normalize_inputs, gaba_linear,
        gaba_linear_rows, sparse_linear, sparse_update, distill_loss, distill_hidden, activation_counts, top_n, engine)
}  # fmt: skip


def run(target: str, number: int) -> bool:
    """One case. True where it passed the first validation.

    Raises:
        AssertionError: the result is not the reference's, or an exception is not of a documented kind.
    """
    case = Case(random.Random(f"{target} {number}"))
    call = TARGETS[target](case)
    if case.chance.random() < MALFORMED:
        case.spoil()
    hot = case.arguments.get("temperature")
    if isinstance(hot, float | int) and MOST_TEMPERATURE < hot < float("inf"):
        case.arguments["temperature"] = MOST_TEMPERATURE
    try:
        right = call()
    except REFUSALS as error:
        assert str(error).strip(), "a refusal says nothing"
        return False
    except Exception as error:
        if target.startswith("topk_linear") and isinstance(
            error, TypeError
        ):  # its documented kind for a k that is no number
            return False
        raise AssertionError(f"{target} {number}: {type(error).__name__}: {str(error)[:300]}") from error
    assert right, f"{target} {number}: the result is not the reference's"
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=TARGETS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    findings = 0
    print(f"{'target':<20}{'cases':>8}{'seconds':>9}{'passed':>8}{'findings':>10}")
    for target in options.only or TARGETS:
        start, passed, found = time.perf_counter(), 0, []
        for number in range(options.first, options.first + options.cases):
            try:
                passed += run(target, number)
            except AssertionError as error:
                found.append(str(error))
        seconds = time.perf_counter() - start
        print(
            f"{target:<20}{options.cases:>8}{seconds:>9.1f}{passed / options.cases:>8.0%}{len(found):>10}", flush=True
        )
        for message in found[:10]:
            print("   ", message, flush=True)
        findings += len(found)
    return findings > 0


if __name__ == "__main__":
    sys.exit(main())
