"""The paper's figures, drawn from the checkpoints and results of finished runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..records import COLUMNS
from .trained import Trained, curves, history

FORMATS = (".png", ".pdf")


def _column(points: np.ndarray, name: str) -> np.ndarray:
    return points[..., COLUMNS.index(name)]


def _epochs(item: Trained, points: np.ndarray) -> np.ndarray:
    return _column(points[0], "task") * item.results[0]["config"]["epochs"] + _column(points[0], "epoch")


def _kl(item: Trained, points: np.ndarray) -> np.ndarray:
    """KL(teacher || student) of the softened outputs: the logit distillation without its factor T^2."""
    return _column(points, "kd_logits") / item.results[0]["config"]["temperature"] ** 2


def _mean(values: np.ndarray) -> tuple[float, float | None, int] | None:
    """Mean, standard deviation and number of what is defined, or None."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values)


def cells(kind: str, trained: list[Trained]) -> list[dict[str, Any]]:
    """The numbers behind a figure that is not a table: per task, mean over its points, then over seeds."""
    found = []
    for item in trained:
        points = curves(item)
        match kind:
            case "heatmap":
                shares = [(history(job)[1] > 0).mean(axis=1) for job in item.jobs]
                series = {"share of neurons that the probe set activates": np.array(shares)}
            case "structure":
                series = {"cosine": _column(points, "cosine"), "Jaccard": _column(points, "jaccard")}
                series["KL"] = _kl(item, points)
            case _:
                series = {"training accuracy": _column(points, "train_accuracy")}
        tasks = _column(points[0], "task")
        for task in sorted(set(tasks)):
            for name, values in series.items():
                if name in ("cosine", "KL") and task == 0:
                    continue
                inside = values[:, tasks == task]
                known = inside.mean(axis=1) if kind == "structure" and name != "Jaccard" else inside[:, -1]
                summary = _mean(known)
                if summary is not None:
                    mean, std, n = summary
                    row = f"{item.row}, {item.column}, task {int(task)}"
                    found.append({"row": row, "column": name, "mean": mean, "std": std, "n": n, "paper": None})
    return found


def draw(kind: str, title: str, trained: list[Trained], path: Path) -> None:
    """Writes `path`.png and `path`.pdf."""
    heading = _wrapped(title, 95) + "\n"
    for suffix in FORMATS:
        target = path.with_name(path.name + suffix)
        match kind:
            case "heatmap":
                item = trained[0]
                points, snapshots = history(item.jobs[0])
                probe = min(item.jobs[0].config.probe_size, item.results[0]["data"]["n_test"])
                one = rf"(seed {item.results[0]['runs'][0]['seed']} of \1\2"
                heading = _wrapped(re.sub(r"\((\d+) seeds?([;)])", one, title, count=1), 95) + "\n"
                plots.neuron_heatmap(item.results[0], snapshots, points.tolist(), probe, target, heading)
            case "tasks":
                item = trained[0]
                plots.task_curves(_merged(item), curves(item).tolist(), target, heading)
            case "sizes":
                _sizes(title, trained, target)
            case "surface":
                _surface(title, trained, target)
            case "structure":
                _structure(title, trained[0], target)
            case "training":
                _training(title, trained, target)


def _merged(item: Trained) -> dict[str, Any]:
    """One results dictionary over the seeds of a row."""
    values = [run["accuracy"]["mean"] for run in item.results]
    accuracy = {"mean": float(np.mean(values)), "std": None, "per_seed": values}
    return item.results[0] | {"accuracy": accuracy, "runs": [run["runs"][0] for run in item.results]}


def _points(trained: list[Trained]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the accuracy of each row."""
    values = np.array([[run["accuracy"]["mean"] for run in item.results] for item in trained])
    return values.mean(axis=1), values.std(axis=1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))


def _sizes(title: str, trained: list[Trained], path: Path) -> None:
    figure, axes = plots.subplots(figsize=(6.5, 4.2))
    for column in dict.fromkeys(item.column for item in trained):
        rows = [item for item in trained if item.column == column]
        n = [item.results[0]["config"]["n_distill"] for item in rows]
        mean, std = _points(rows)
        axes.errorbar(n, mean, yerr=std, marker="o", capsize=3, label=f"here, {column}")
        printed = [(x, item.paper) for x, item in zip(n, rows) if item.paper is not None]
        if printed:
            axes.plot(*zip(*printed), "x", color="tab:red", ms=8, label="paper")
    axes.set_xscale("log")
    axes.set_xticks(n, [str(v) for v in n])
    axes.minorticks_off()
    axes.set_xlabel("n, distilled neurons")
    axes.set_ylabel("accuracy after the last task")
    axes.set_title(_wrapped(title), fontsize=10)
    axes.legend()
    plots.save(figure, path)


def _surface(title: str, trained: list[Trained], path: Path) -> None:
    trained = [item for item in trained if item.column == trained[0].column]
    configs = [item.results[0]["config"] for item in trained]
    alphas = sorted({c["alpha"] for c in configs})
    temperatures = sorted({c["temperature"] for c in configs})
    mean, std = _points(trained)
    at = {(c["alpha"], c["temperature"]): i for i, c in enumerate(configs)}
    index = np.array([[at[a, t] for a in alphas] for t in temperatures])
    figure = plots.new_figure((11, 4.8))
    left = figure.add_subplot(1, 2, 1, projection="3d")
    surface = left.plot_surface(
        *np.meshgrid(alphas, temperatures), mean[index], cmap="viridis", edgecolor="0.3", lw=0.4
    )
    left.set_xlabel("alpha")
    left.set_ylabel("T")
    left.set_xticks(alphas)
    left.set_yticks(temperatures)
    left.view_init(elev=28, azim=-125)
    figure.colorbar(surface, ax=left, shrink=0.65, pad=0.1, label="accuracy")
    right = figure.add_subplot(1, 2, 2)
    gap = 0.012  # between lines that coincide
    for place, (row, t) in enumerate(zip(index, temperatures)):
        x = np.array(alphas) + gap * (place - (len(temperatures) - 1) / 2)
        right.errorbar(x, mean[row], yerr=std[row], marker="os^Dvp*X"[place % 8], ms=5, capsize=3, label=f"T {t:g}")
    right.set_xticks(alphas)
    right.set_xlabel("alpha, weight of the cross entropy (the lines of each T are set apart a little)")
    right.set_ylabel("accuracy after the last task")
    right.legend()
    figure.suptitle(_wrapped(title, 110), fontsize=10)
    plots.save(figure, path)


def _structure(title: str, item: Trained, path: Path) -> None:
    points = curves(item)
    x, tasks = _epochs(item, points), _column(points[0], "task")
    series = [("cosine of teacher's and student's addresses", _column(points, "cosine"), 0.77, "above"),
              ("Jaccard of the most frequent neurons", _column(points, "jaccard"), 0.81, "above"),
              ("KL(teacher || student)", _kl(item, points), 0.2, "settles below")]  # fmt: skip
    figure, grid = plots.subplots(3, 1, figsize=(8, 7), sharex=True)
    for axes, (label, values, paper, where) in zip(grid, series):
        if not label.startswith("Jaccard"):  # no teacher in task 0
            values = np.where(tasks == 0, np.nan, values)
        shown = np.isfinite(values).all(axis=0)
        for task in sorted(set(tasks)):  # a new task has a new teacher: its line starts anew
            part = shown & (tasks == task)
            inside = values[:, part]
            mean = inside.mean(axis=0)
            axes.plot(x[part], mean, marker=".", lw=1.2, color="tab:blue")
            if len(values) > 1:
                std = inside.std(axis=0, ddof=1)
                axes.fill_between(x[part], mean - std, mean + std, alpha=0.25, lw=0, color="tab:blue")
        axes.axhline(paper, color="tab:red", lw=0.9, ls=":", label=f"paper: {where} {paper:g} (from task 1)")
        axes.legend(loc="best", fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xlim(0, x[-1])
        for border in range(1, int(tasks[-1]) + 1):
            axes.axvline(border * item.results[0]["config"]["epochs"], color="0.6", lw=0.8, ls="--")
    for axes in grid[:2]:
        axes.set_ylim(0, 1.02)
    grid[2].set_ylim(bottom=0)
    grid[2].set_xlabel("epoch (dashed: a new task begins)")
    figure.suptitle(_wrapped(title, 90), fontsize=10)
    plots.save(figure, path)


def _training(title: str, trained: list[Trained], path: Path) -> None:
    figure, grid = plots.subplots(1, len(trained), figsize=(5.5 * len(trained), 4), sharey=True, squeeze=False)
    for axes, item in zip(grid.flat, trained):
        points = curves(item)
        x, tasks = _epochs(item, points), _column(points[0], "task")
        accuracy = _column(points, "train_accuracy").mean(axis=0)
        for task in sorted(set(tasks)):
            axes.plot(x[tasks == task], accuracy[tasks == task], marker=".", lw=1.2, label=f"task {int(task)}")
        for border in range(1, int(tasks[-1]) + 1):
            axes.axvline(border * item.results[0]["config"]["epochs"], color="0.6", lw=0.8, ls="--")
        axes.set_xlabel("epoch (dashed: a new task begins)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"{item.results[0]['config']['epochs']} epochs per task", fontsize=10)
    grid.flat[0].set_ylabel("accuracy on the task's training data")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle(_wrapped(title, 110), fontsize=10)
    plots.save(figure, path)


def _wrapped(text: str, width: int = 75) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
