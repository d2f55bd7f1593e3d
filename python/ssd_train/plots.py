"""The figures of a run. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import write_atomic
from .records import COLUMNS


def new_figure(size: tuple[float, float]) -> Any:
    """A matplotlib figure for a file. pyplot, which shows figures in windows and notebooks, is left as it is."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, as pyplot's function of this name gives them."""
    figure = new_figure(figsize)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Any, path: Path) -> None:
    """Writes the figure in one piece, so that a crash leaves no half picture."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=140)
    write_atomic(path, content.getvalue())


def accuracy_matrix(results: dict[str, Any], path: Path) -> None:
    """Heatmap: accuracy on task i (column) after task t (row), mean over seeds; i > t is left out, as in tables."""
    runs = [[[np.nan if v is None else v for v in row] for row in run["accuracy_matrix"]] for run in results["runs"]]
    matrix = np.mean(np.array(runs, dtype=float), axis=0)
    tasks = len(matrix)
    shown = np.where(np.tril(np.ones_like(matrix)) > 0, matrix, np.nan)
    side = min(12.0, 2.6 + 0.62 * tasks)
    figure, axes = subplots(figsize=(side + 1.0, side))
    image = axes.imshow(shown, vmin=0, vmax=1, cmap="viridis")
    if tasks <= 20:
        axes.set_xticks(range(tasks))
        axes.set_yticks(range(tasks))
        for t, i in zip(*np.nonzero(~np.isnan(shown))):
            color = "white" if shown[t, i] < 0.6 else "black"
            size = 9 if tasks <= 12 else 6
            axes.text(i, t, f"{shown[t, i]:.2f}", ha="center", va="center", color=color, fontsize=size)
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after training task")
    seeds = len(runs)
    axes.set_title(f"{_title(results)}\n{seeds} seed{'s' if seeds > 1 else ''}", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.85, label="accuracy (TAg)")
    save(figure, path)


def task_curves(results: dict[str, Any], histories: list[list[list[float]]], path: Path, heading: str = "") -> None:
    """Accuracy over epochs (the paper's Fig. 7): all samples top left, then one panel per task.

    A line per task that is trained: mean and standard deviation (ddof 1) over seeds.

    Args:
        histories: per seed the points: what `COLUMNS` names, then the accuracy on each task.
        heading: what comes before the title.
    """
    points = np.array(histories, dtype=float)
    mean = points.mean(axis=0)
    spread = points.std(axis=0, ddof=1) if len(histories) > 1 else np.zeros_like(mean)
    epochs, tasks = results["config"]["epochs"], len(results["runs"][0]["tasks"])
    x = mean[:, 0] * epochs + mean[:, 1]
    first, each = COLUMNS.index("accuracy"), len(COLUMNS)
    columns = [first, *range(each, each + tasks)]
    shown = columns[:12]
    across = 3 if len(shown) > 4 else 2
    down = -(-len(shown) // across)
    figure, grid = subplots(down, across, figsize=(3.6 * across, 2.5 * down), sharex=True, sharey=True,
                                squeeze=False)  # fmt: skip
    borders = [epochs * t for t in range(1, len(results["runs"][0]["loss_parts"]))]
    for axes, column in zip(grid.flat, shown):
        title = "all classes" if column == first else f"task {column - each}"
        if column != first:
            title += f": classes {_classes(results, column - each)}"
        for trained in np.unique(mean[:, 0]):  # no line leads from one task to the next: between them all changes
            part = mean[:, 0] == trained
            value, deviation = mean[part, column], spread[part, column]
            axes.plot(x[part], value, lw=1.5, marker=".", ms=4, color="tab:blue")
            if len(histories) > 1:
                low, high = np.clip(value - deviation, 0, 1), np.clip(value + deviation, 0, 1)
                axes.fill_between(x[part], low, high, alpha=0.25, lw=0, color="tab:blue")
        for border in borders:
            axes.axvline(border, color="0.75", lw=0.7, zorder=0)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(-0.02, 1.02)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch (vertical lines: a new task begins)", fontsize=10)
    figure.supylabel(measured_on(results), fontsize=10)
    left_out = f"; tasks 0 .. {len(shown) - 2} of {tasks}" if len(shown) < len(columns) else ""
    band = f"; mean and standard deviation of {len(histories)} seeds" if len(histories) > 1 else ""
    figure.suptitle(f"{heading}{_title(results)}{left_out}{band}", fontsize=10)
    save(figure, path)


def methods_over_tasks(runs: list[dict[str, Any]], path: Path) -> None:
    """Runs side by side: the mean accuracy on the tasks seen, after each task, and BWT; mean and deviation over seeds.

    Args:
        runs: their results.json.
    """
    figure, (left, right) = subplots(1, 2, figsize=(11, 4.6),
                                         gridspec_kw={"width_ratios": (2.2, 1)})  # fmt: skip
    names = _names(runs)
    for place, (run, name) in enumerate(zip(runs, names)):
        seen = np.array([[_mean_seen(row, t) for t, row in enumerate(r["accuracy_matrix"])] for r in run["runs"]])
        mean, tasks = seen.mean(axis=0), np.arange(1, seen.shape[1] + 1)
        style = {"color": f"C{place % 10}", "marker": "os^Dv*PX"[place % 8], "ms": 5, "lw": 1.4}
        left.plot(tasks, mean, label=name, **style)
        if len(seen) > 1:
            std = seen.std(axis=0, ddof=1)
            left.fill_between(tasks, np.clip(mean - std, 0, 1), np.clip(mean + std, 0, 1), alpha=0.2, lw=0,
                              color=style["color"])  # fmt: skip
        bwt = run["bwt"]
        if bwt["mean"] is not None:
            right.barh(place, bwt["mean"], xerr=bwt["std"], color=style["color"], capsize=3)
    left.set_xlabel("tasks trained")
    left.set_ylabel(f"mean accuracy on the tasks seen ({' or '.join(dict.fromkeys(map(measured_on, runs)))})")
    left.set_ylim(0, 1.02)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=8)
    left.grid(axis="y", color="0.9")
    right.set_yticks(range(len(runs)), names, fontsize=8)
    right.invert_yaxis()
    right.axvline(0, color="0.4", lw=0.8)
    right.set_xlabel("BWT (closer to 0 is better)")
    seeds = sorted({len(run["runs"]) for run in runs})
    counts = " or ".join(map(str, seeds))
    title = ", ".join(dict.fromkeys(run["data"]["name"] for run in runs))
    figure.suptitle(f"{title}: mean and standard deviation over {counts} seed{'s' * (seeds != [1])}", fontsize=10)
    save(figure, path)


def _mean_seen(row: list[float | None], t: int) -> float:
    """Mean accuracy on tasks 0 .. t; NaN where one of them is not defined."""
    return float(np.mean([np.nan if v is None else v for v in row[: t + 1]]))


def _names(runs: list[dict[str, Any]]) -> list[str]:
    """A short name per run: its method, and its size where methods repeat."""
    methods = [run["method"] for run in runs]
    sizes = [f"{run['method']}, R {run['config']['neurons']}, K {run['config']['k']}" for run in runs]
    names = [m if methods.count(m) == 1 else s for m, s in zip(methods, sizes)]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def svg_of(draw: Callable[[Path], None]) -> str:
    """The <svg> element of a figure that `draw` writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        draw(path)
        text = path.read_text()
    return text[text.index("<svg") :]


def measured_on(results: dict[str, Any]) -> str:
    """What a run's accuracies are measured on: the test set, unless a part of the training data was held out for it."""
    return "accuracy on held-out training data" if results["config"].get("validation") else "test accuracy"


def _classes(results: dict[str, Any], task: int) -> str:
    order = results["runs"][0]["tasks"]
    same = all(run["tasks"] == order for run in results["runs"])
    names = ", ".join(map(str, order[task][:6])) + (", ..." if len(order[task]) > 6 else "")
    return names if same else "differ by seed"


def neuron_heatmap(results: dict[str, Any], snapshots: np.ndarray, history: list[list[float]], probe: int,
                   path: Path, heading: str = "") -> None:  # fmt: skip
    """Neuron index by epoch (the paper's Fig. 2): colour is the share of the probe samples that a neuron is active for.

    Args:
        snapshots: (points, R), active probe samples per neuron. history: the points' (task, epoch, ...) of one seed.
        probe: number of probe samples. heading: what comes before the title.
    """
    epochs = results["config"]["epochs"]
    ends = np.array([task * epochs + epoch for task, epoch, *_ in history], dtype=float)
    starts = np.concatenate([[0.0], ends[:-1]])
    share = snapshots.T / probe
    neurons = share.shape[0]
    bins = min(neurons, 1000)
    edges = np.linspace(0, neurons, bins + 1).astype(int)
    # One pixel row per neuron where they fit, else the most active neuron of each group.
    binned = np.maximum.reduceat(share, edges[:-1], axis=0)
    figure, axes = subplots(figsize=(8, 5.5))
    mesh = axes.pcolormesh(np.append(starts, ends[-1]), edges, np.log10(np.maximum(binned, 0.5 / probe)),
                           cmap="magma", shading="flat", rasterized=True)  # fmt: skip
    for task in range(1, len(results["runs"][0]["loss_parts"])):
        axes.axvline(task * epochs, color="white", lw=0.8, ls="--")
    ticks = [t for t in (1e-3, 1e-2, 1e-1, 1.0) if t >= 0.5 / probe]
    bar = figure.colorbar(mesh, ax=axes, label=f"share of {probe} probe samples that activate the neuron")
    bar.set_ticks([np.log10(t) for t in ticks], labels=[f"{t:g}" for t in ticks])
    axes.set_xlabel("epoch (dashed: a new task begins)")
    axes.set_ylabel("neuron index" if bins == neurons else f"neuron index ({bins} groups, the largest share of each)")
    axes.set_title(f"{heading}{_title(results)}, seed {results['runs'][0]['seed']}, first hidden layer", fontsize=10)
    save(figure, path)


def _title(results: dict[str, Any]) -> str:
    config = results["config"]
    size = f"R {config['neurons']}" + (f", K {config['k']}" if results["model"] == "SDMLP" else "")
    accuracy = results["accuracy"]["mean"]
    ending = "" if accuracy is None else f", final accuracy {accuracy:.3f}"
    return f"{config['method']} on {results['data']['name']}, {size}{ending}"
