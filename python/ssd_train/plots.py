"""The figures of a run. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import write_atomic
from .records import COLUMNS


def pyplot() -> Any:
    """matplotlib.pyplot, for files only."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Writes the figure in one piece, so that a crash leaves no half picture."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=140)
    write_atomic(path, content.getvalue())
    pyplot().close(figure)


def accuracy_matrix(results: dict[str, Any], path: Path) -> None:
    """Heatmap: accuracy on task i (column) after task t (row), mean over seeds; i > t is left out, as in tables."""
    plt = pyplot()
    runs = [[[np.nan if v is None else v for v in row] for row in run["accuracy_matrix"]] for run in results["runs"]]
    matrix = np.mean(np.array(runs, dtype=float), axis=0)
    tasks = len(matrix)
    shown = np.where(np.tril(np.ones_like(matrix)) > 0, matrix, np.nan)
    side = min(12.0, 2.6 + 0.62 * tasks)
    figure, axes = plt.subplots(figsize=(side + 1.0, side), layout="constrained")
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
    """Validation accuracy over epochs (the paper's Fig. 7): all samples top left, then one panel per task.

    Args:
        histories: per seed the points: what `COLUMNS` names, then the accuracy on each task.
        heading: what comes before the title.
    """
    plt = pyplot()
    points = np.array(histories, dtype=float)
    mean, spread = points.mean(axis=0), points.std(axis=0)
    epochs, tasks = results["config"]["epochs"], len(results["runs"][0]["tasks"])
    x = mean[:, 0] * epochs + mean[:, 1]
    first, each = COLUMNS.index("accuracy"), len(COLUMNS)
    columns = [first, *range(each, each + tasks)]
    shown = columns[:12]
    across = 3 if len(shown) > 4 else 2
    down = -(-len(shown) // across)
    figure, grid = plt.subplots(down, across, figsize=(3.6 * across, 2.5 * down), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    borders = [epochs * t for t in range(1, len(results["runs"][0]["loss_parts"]))]
    for axes, column in zip(grid.flat, shown):
        title = "all classes" if column == first else f"task {column - each}"
        if column != first:
            title += f": classes {_classes(results, column - each)}"
        axes.plot(x, mean[:, column], lw=1.5, color="tab:blue")
        if len(histories) > 1:
            low, high = mean[:, column] - spread[:, column], mean[:, column] + spread[:, column]
            axes.fill_between(x, np.clip(low, 0, 1), np.clip(high, 0, 1), alpha=0.25, lw=0, color="tab:blue")
        for border in borders:
            axes.axvline(border, color="0.75", lw=0.7, zorder=0)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(-0.02, 1.02)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch (vertical lines: a new task begins)", fontsize=10)
    figure.supylabel("validation accuracy", fontsize=10)
    left_out = f"; tasks 0 .. {len(shown) - 2} of {tasks}" if len(shown) < len(columns) else ""
    band = f"; mean and standard deviation of {len(histories)} seeds" if len(histories) > 1 else ""
    figure.suptitle(f"{heading}{_title(results)}{left_out}{band}", fontsize=10)
    save(figure, path)


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
    plt = pyplot()
    epochs = results["config"]["epochs"]
    ends = np.array([task * epochs + epoch for task, epoch, *_ in history], dtype=float)
    starts = np.concatenate([[0.0], ends[:-1]])
    share = snapshots.T / probe
    neurons = share.shape[0]
    bins = min(neurons, 1000)
    edges = np.linspace(0, neurons, bins + 1).astype(int)
    # One pixel row per neuron where they fit, else the most active neuron of each group.
    binned = np.maximum.reduceat(share, edges[:-1], axis=0)
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
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
