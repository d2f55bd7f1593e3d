"""The paper's tables and figures as settings: what is trained for each cell, and the number printed there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CIFAR10, CIFAR100, MNIST = "CIFAR-10", "CIFAR-100", "MNIST"

# The ablations share these, except for what varies (section 9 of the specification).
ABLATION = {
    "method": "ssd",
    "neurons": 10_000,
    "k": 10,
    "alpha": 0.7,
    "temperature": 2.0,
    "lam": 0.5,
    "n_distill": 1000,
}
FULL_LENGTH = 2000
MAIN = {"epochs": FULL_LENGTH, "order": "seed"}


@dataclass(frozen=True)
class Cell:
    """A row of a table, or a point of a figure: its settings and the paper's number per column."""

    row: str
    settings: dict[str, Any]
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        kind: `table` (a column per data set), or the figure's drawing in figures.py.
        pairs: rows (a, b) whose difference a - b is shown, order by order.
    """

    title: str
    cells: list[Cell]
    kind: str = "table"
    metric: str = "accuracy"
    note: str = ""
    pairs: tuple[tuple[str, str], ...] = ()


def _three(cifar10: float | None, cifar100: float | None, mnist: float | None) -> dict[str, float]:
    columns = {CIFAR10: cifar10, CIFAR100: cifar100, MNIST: mnist}
    return {name: value for name, value in columns.items() if value is not None}


def _row(row: str, method: str, neurons: int, k: int, *paper: float | None, model: str | None = None) -> Cell:
    settings = MAIN | {"method": method, "neurons": neurons, "k": k, "model": model}
    return Cell(row, settings, _three(*paper))


def _ablation(row: str, value: float | None = None, **changes: Any) -> Cell:
    return Cell(row, MAIN | ABLATION | changes, {} if value is None else {CIFAR10: value})


def _study(row: str, epochs: int = 200, neurons: int = 1000, method: str = "ssd", **changes: Any) -> Cell:
    settings = {"method": method, "neurons": neurons, "k": 10, "epochs": epochs, "order": "seed"}
    return Cell(row, settings | changes)


def _studies() -> Experiment:
    """One setting at a time, everything else at the defaults; then which part of the loss makes the gain."""
    varied = [
        _study("SDMLP", method="sdmlp"),
        _study("LwF on the SDMLP", method="lwf", model="sdmlp"),
        *(_study(f"SSD, n {n}", n_distill=n) for n in (10, 200)),
        *(_study(f"SSD, alpha {a}", alpha=a) for a in (0.3, 0.5, 0.9)),
        _study("SSD, T 2", temperature=2.0),
        _study("SSD, reverse KL", kl="reverse"),
        _study("SSD, hidden scores", hidden="scores"),
        _study("SSD, entropy ranks", rank="entropy"),
        *(_study(f"{name}, no switch", method=name.lower(), gaba_switch="none") for name in ("SDMLP", "SSD")),
    ]
    cells, pairs = [_study("SSD"), *varied], [(cell.row, "SSD") for cell in varied[:-2]]
    pairs.append(("SSD, no switch", "SDMLP, no switch"))
    for size, neurons in (("1000", 1000), ("10 000", 10_000)):
        rows = {"SSD": {}, "logits only": {"lam": 0.0}, "hidden only": {"lam": 1.0}}
        cells += [_study(f"{row}, {size} neurons", 500, neurons, **changes) for row, changes in rows.items()]
        cells.append(_study(f"SDMLP, {size} neurons", 500, neurons, "sdmlp"))
        names = [("SSD", "logits only"), ("SSD", "hidden only"), ("SSD", "SDMLP"), ("hidden only", "SDMLP")]
        pairs += [(f"{a}, {size} neurons", f"{b}, {size} neurons") for a, b in names]
    return Experiment("Studies: what SSD's gain is made of (n 1000, alpha 0.7, T 8, lam 0.1 unless the row says "
                      "otherwise)", cells, pairs=tuple(pairs))  # fmt: skip


TINY = {"neurons": 10_000, "k": 10, "classes_per_task": 20}
SSD = MAIN | {"method": "ssd", "neurons": 10_000, "k": 10}
DENSE = ("EWC", "SI", "LwF", "iCaRL")
ON_TINY = "Split Tiny-ImageNet-200"

EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment("Table 1: accuracy with 10 000 neurons", [
        _row("SDMLP, K 10", "sdmlp", 10_000, 10, 0.71, 0.32, 0.53),
        _row("SI (ReLU MLP)", "si", 10_000, 10, 0.44, None, None, model="relu"),
        _row("EWC (ReLU MLP)", "ewc", 10_000, 10, 0.65, 0.16, 0.61, model="relu"),
        _row("SSD, K 10", "ssd", 10_000, 10, 0.81, 0.43, 0.57),
        _row("SSD+EWC, K 10", "ssd+ewc", 10_000, 10, 0.87, 0.52, 0.86),
    ], pairs=(("SSD, K 10", "SDMLP, K 10"), ("SSD+EWC, K 10", "SSD, K 10"))),
    "table2": Experiment("Table 2: accuracy with 1000 neurons", [
        _row("SDMLP, K 10", "sdmlp", 1000, 10, 0.63, 0.29, 0.53),
        _row("SDMLP, K 1", "sdmlp", 1000, 1, 0.70, 0.25, 0.69),
        _row("SI (ReLU MLP)", "si", 1000, 10, 0.34, None, 0.36, model="relu"),
        _row("EWC (ReLU MLP)", "ewc", 1000, 10, 0.67, 0.12, 0.61, model="relu"),
        _row("SSD, K 10", "ssd", 1000, 10, 0.73, 0.34, 0.55),
        _row("SSD, K 1", "ssd", 1000, 1, 0.74, 0.35, 0.74),
        _row("SSD+EWC, K 1", "ssd+ewc", 1000, 1, 0.80, 0.40, 0.86),
    ], pairs=(("SSD, K 10", "SDMLP, K 10"), ("SSD, K 1", "SDMLP, K 1"), ("SSD+EWC, K 1", "SSD, K 1"))),
    "table3": Experiment("Table 3: backward transfer with 10 000 neurons", [
        Cell("SDMLP", SSD | {"method": "sdmlp"}, {CIFAR10: -0.1828}),
        Cell("SSD", SSD, {CIFAR10: -0.1234}),
    ], metric="bwt"),
    "table4": Experiment("Table 4: selective and hierarchical distillation", [
        _ablation("selective: Top-n hidden only", 0.7874, lam=1.0),
        _ablation("hierarchical: all hidden + logits", 0.8056, n_distill=10_000),
        _ablation("both: Top-n hidden + logits", 0.8083),
    ]),
    "table5": Experiment("Table 5: weight of the hidden against the logit distillation", [
        _ablation("hidden 0.5", 0.8083, lam=0.5),
        _ablation("hidden 0.9", 0.7902, lam=0.9),
        _ablation("hidden 0.7", 0.8001, lam=0.7),
        _ablation("hidden 0.3", 0.8087, lam=0.3),
        _ablation("hidden 0.1", 0.8174, lam=0.1),
        _ablation("hidden 0.1, T 8", 0.8174, lam=0.1, temperature=8.0),
    ], note="The paper prints 0.8174 at 0.1 in Table 5 and 0.8143 in the text beside it, and 0.8174 again for T 8."),
    "fig2": Experiment("Figure 2: neurons that the probe set activates", [Cell("SSD", SSD)], "heatmap"),
    "fig3": Experiment("Figure 3: accuracy over the size n of the distilled subnetwork", [
        _ablation(f"n {n}", {200: 0.8081, 1000: 0.8083}.get(n), n_distill=n) for n in (10, 100, 200, 500, 1000, 2000)
    ], "sizes"),
    "fig4": Experiment("Figure 4: accuracy over alpha and T", [
        _ablation(f"alpha {alpha}, T {t}", {(0.7, 8): 0.8174}.get((alpha, t)), alpha=alpha, temperature=float(t))
        for t in (2, 4, 6, 8) for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)
    ], "surface"),
    "fig5": Experiment("Figure 5: cosine, Jaccard and KL over epochs", [Cell("SSD", SSD)], "structure",
                       note="Paper: cosine above 0.77 and Jaccard above 0.81 from task 1 on, KL settles below 0.2."),
    "fig6": Experiment("Figure 6: training accuracy at the full and at a tenth of the epochs", [
        Cell("SSD, full", SSD), Cell("SSD, a tenth", SSD | {"epochs": 200}),
    ], "training"),
    "fig7": Experiment("Figure 7: validation accuracy per task", [Cell("SSD", SSD, {CIFAR10: 0.8174})], "tasks"),
    "tiny-imagenet": Experiment("Appendix A: Split Tiny-ImageNet, ten tasks", [
        Cell("SDMLP", MAIN | TINY | {"method": "sdmlp"}, {ON_TINY: 0.134}),
        Cell("SSD", MAIN | TINY | {"method": "ssd"}, {ON_TINY: 0.250}),
        *(Cell(name, MAIN | TINY | {"method": name.lower(), "model": "relu"}) for name in DENSE),
    ], note="Paper: EWC, SI, LwF and iCaRL below 0.085."),
    "resnet": Experiment("Appendix A: ResNet embeddings", [
        Cell("SDMLP", SSD | {"method": "sdmlp"}, {CIFAR10: 0.760}), Cell("SSD", SSD, {CIFAR10: 0.802}),
    ]),
    "studies": _studies(),
}  # fmt: skip


# What the SDMLP paper used on MNIST (pixels in 0 .. 1); the methods' own defaults are its values on CIFAR.
ON_MNIST = {
    "ewc": {"coef": 20_000.0, "beta": 0.005}, "ssd+ewc": {"coef": 20_000.0, "beta": 0.005},
    "si": {"coef": 1500.0, "beta": 0.005}, "mas": {"coef": 0.5}, "l2": {"coef": 10.0},
}  # fmt: skip


def coefficients(settings: dict[str, Any], column: str) -> dict[str, Any]:
    """The strength of a row's penalty on a data set, where it is not the method's default."""
    return ON_MNIST.get(settings.get("method", ""), {}) if column == MNIST else {}


def column_of(name: str) -> str:
    """The paper's column that a data set of this name belongs to, or the name itself."""
    lower = name.lower().replace("_", "-")
    if "tiny" in lower and "imagenet" in lower:
        return ON_TINY
    for column in (CIFAR100, CIFAR10, MNIST):
        if column.lower() in lower or column.lower().replace("-", "") in lower:
            return column
    return name
