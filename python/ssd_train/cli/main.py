"""The command `ssd-train`: options, one-line errors, exit codes (0 done, 2 bad input, 130 / 143 interrupted)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser

from .. import __version__
from ..errors import BadInput, bad, say
from ..options import PRETRAINING, parse, parse_run, parse_settings, split_options, typed_options
from ..sizes import cores
from .failures import report

USAGE = """usage: ssd-train COMMAND [options]

commands:
  run      train a method on a sequence of tasks
  pretrain train an SDMLP on other data, to start from with run --pretrained
  report   compare finished runs in one table
  eval     test the models of a run on data
  sweep    vary any settings over a grid, a list or at random
  embed    turn images into embeddings with a frozen extractor
  pretrain-extractor   train the ConvMixer of embed on a labelled image set
  paper    reproduce a table or figure of the paper

ssd-train COMMAND --help lists the options. Exit codes: 0 done, 2 bad input, 130 or 143 interrupted (state saved)."""


SWEEP_VALIDATION = 0.1  # of the training data: what a sweep ranks on unless told otherwise
SWEEP = "Trains every combination of settings with every seed. All options of `ssd-train run` are taken as well."


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; every error is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"run": _run, "pretrain": _pretrain, "report": _report, "eval": _eval, "sweep": _sweep}
    commands |= {"embed": _embed, "pretrain-extractor": _pretrain_extractor, "paper": _paper}
    try:
        if not argv or argv[0] in ("-h", "--help"):
            say(USAGE)
            return 0 if argv else 2
        if argv[0] == "--version":
            say(__version__)
            return 0
        if argv[0] not in commands:
            raise BadInput(f"command: got {argv[0]!r}, allowed is {', '.join(commands)}")
        return commands[argv[0]](argv[1:])
    except SystemExit:
        raise
    except BaseException as error:
        return report(error)


def _run(argv: list[str]) -> int:
    from ..run.runner import run

    return run(parse_run(argv), ["run", *argv])


def _pretrain(argv: list[str]) -> int:
    """`run` on all classes at once with momentum; `auto` of the GABA switch is 0.4 x samples."""
    from .. import data
    from ..run.runner import run
    from ..validate import check

    config = parse_run(argv, PRETRAINING)
    check(config)
    if config.gaba_switch == "auto":
        config.gaba_switch = 0.4 * len(data.load(config.data).x_train)
    return run(config, ["pretrain", *argv])


def _report(argv: list[str]) -> int:
    from ..report.compare import compare
    from ..report.formats import FORMATS

    parser = ArgumentParser(prog="ssd-train report", exit_on_error=False, description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=str, help="folders that `ssd-train run` wrote")
    parser.add_argument("--format", type=str, default="table", help=", ".join(FORMATS) + " (one page with its figure)")
    parser.add_argument("--plot", type=str | None, default=None, help="also draw accuracy over tasks and BWT: "
                        "FILE.png, .pdf or .svg")  # fmt: skip
    options = parse(parser, argv)
    plot = None if options.plot is None else Path(options.plot)
    return compare([Path(p) for p in options.runs], options.format, plot)


def _eval(argv: list[str]) -> int:
    from ..run.evaluate import evaluate

    parser = ArgumentParser(prog="ssd-train eval", exit_on_error=False, description="Tests saved models.")
    parser.add_argument("model", type=str, help="the folder of a run, or one model.safetensors")
    parser.add_argument("--data", type=str | None, default=None, help="data to test on; by default the run's own")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    options = parse(parser, argv)
    return evaluate(Path(options.model), options.data, options.device)


def _paper(argv: list[str]) -> int:
    from ..report.experiments import EXPERIMENTS
    from ..report.paper import paper
    from ..report.render import render

    parser = ArgumentParser(prog="ssd-train paper", exit_on_error=False, description="Reproduces a table or figure; "
                            "without --data, prints tables from committed results.")  # fmt: skip
    parser.add_argument("names", nargs="+", type=str, help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", nargs="+", type=str, default=[], help="data sets to train on, one per column")
    parser.add_argument("--seeds", type=int | str | list[int] | None, default=None, help="0, 0,1,2 or 0-4 (default)")
    parser.add_argument("--orders", type=str | None, default=None, help="orders of the tasks, as ordinal,numpy:3: "
                        "order i with seed i")  # fmt: skip
    parser.add_argument("--epochs", type=int | None, default=None, help="epochs per task, if not the paper's")
    parser.add_argument("--neurons", type=int | None, default=None, help="neurons, if not the paper's")
    parser.add_argument("--set", nargs="+", type=str, default=[], help="any other options of run, as name=value")
    parser.add_argument("--pretrained", nargs="+", type=str, default=[], help="models of `ssd-train pretrain`; a row "
                        "of an SDMLP starts from the one of its size")  # fmt: skip
    parser.add_argument("--out", type=str, default="runs/paper", help="folder of the results, and of the runs")
    parser.add_argument("--workers", type=int | None, default=None, help="runs at a time; 0: in this process")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads of each run")
    parser.add_argument("--results", type=str, default="results/paper", help="folder of committed X.json files")
    parser.add_argument("--add", nargs="+", type=str, default=[], help="finished runs that become part of --results")
    parser.add_argument("--into", type=str | None, default=None, help="a page whose text between <!-- X --> and "
                        "<!-- /X --> becomes the table")  # fmt: skip
    options = parse(parser, argv)
    _refuse_mixed(argv, bool(options.data))
    if not options.data:
        page = None if options.into is None else Path(options.into)
        return render(options.names, Path(options.results), [Path(p) for p in options.add], page)
    orders = options.orders.split(",") if options.orders else None
    seeds = options.seeds if options.seeds is not None else f"0-{len(orders) - 1}" if orders else "0-4"
    workers, threads = _spread(options.workers, options.threads)
    changes = (options.epochs, options.neurons, options.set)
    out, pretrained = Path(options.out), options.pretrained
    for name in options.names:
        code = paper(name, options.data, seeds, out, changes, workers, threads, pretrained, orders)
        if code:
            return code
    return 0


def _refuse_mixed(argv: list[str], trains: bool) -> None:
    """Options that say how to train need data; those about committed results need none."""
    reading = {"--results", "--add", "--into"}
    for option in typed_options(argv):
        if option == "--data" or option in ("--help", "--print_config"):
            continue
        if trains and option in reading:
            raise BadInput(f"{option}: is for tables from committed results, without --data")
        if not trains and option not in reading:
            raise BadInput(f"{option}: is for training, with --data; without it, tables come from --results")


def _sweep(argv: list[str]) -> int:
    """Takes every option of `run` beside its own."""
    from ..report.sweep import sweep, varied_methods

    own = ArgumentParser(prog="ssd-train sweep", exit_on_error=False, description=SWEEP)
    own.add_argument("--vary", nargs="+", type=str, required=True, help="field=value,value,... or field=low..high")
    own.add_argument("--mode", type=str, default="grid", help="grid, list or random")
    own.add_argument("--samples", type=int, default=10, help="combinations that --mode random draws")
    own.add_argument("--sample-seed", type=int, default=0, help="seed of --mode random")
    own.add_argument("--workers", type=int | None, default=None, help="runs at a time; 0: in this process")
    own.add_argument("--scheduler", type=str, default="local", help="local: processes here; ray: RAY_ADDRESS's cluster")
    mine, rest = split_options(own, argv)
    o = parse(own, mine)
    base = parse_settings(rest, methods=varied_methods(o.vary))
    if "--validation" not in typed_options(rest):
        base["validation"] = base["validation"] or SWEEP_VALIDATION
    if base["parallel"] is not None:
        raise bad("--parallel", base["parallel"], "null in a sweep, whose runs are what spreads over processes")
    out = Path(base["out"] or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}")
    workers, threads = o.workers, base["threads"] or 1
    if o.scheduler != "ray":
        workers, threads = _spread(o.workers, base["threads"])
    return sweep(base, o.vary, o.mode, o.samples, o.sample_seed, out, workers, threads, o.scheduler)


def _embed(argv: list[str]) -> int:
    from ..embed.embed import ALLOWED, embed

    parser = ArgumentParser(prog="ssd-train embed", exit_on_error=False, description="Turns images into embeddings.")
    parser.add_argument("--data", type=str, required=True, help="images: cifar10:DIR, images:DIR, ...")
    parser.add_argument("--extractor", type=str, default="convmixer", help=ALLOWED)
    parser.add_argument("--weights", type=str | None, default=None, help=".safetensors, or a torch state dict")
    parser.add_argument("--out", type=str, required=True, help="FILE.safetensors, which --data then takes")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--mean", nargs="+", type=float, default=[0.5], help="per channel, of pixels in 0 .. 1")
    parser.add_argument("--std", nargs="+", type=float, default=[0.5], help="per channel, of pixels in 0 .. 1")
    o = parse(parser, argv)
    return embed(o.data, o.extractor, o.weights, Path(o.out), o.batch_size, o.device, o.mean, o.std)


def _pretrain_extractor(argv: list[str]) -> int:
    import dataclasses
    import typing

    from ..embed.extractor import ExtractorConfig, pretrain_extractor

    parser = ArgumentParser(prog="ssd-train pretrain-extractor", exit_on_error=False, description="Trains a ConvMixer.")
    types = typing.get_type_hints(ExtractorConfig)
    for field in dataclasses.fields(ExtractorConfig):
        option, needed = "--" + field.name.replace("_", "-"), field.default is dataclasses.MISSING
        default = {"required": True} if needed else {"default": field.default}
        parser.add_argument(option, type=types[field.name], help="images" if needed else field.name, **default)
    parser.add_argument("--out", type=str, required=True, help="output folder; its extractor.safetensors is for embed")
    parser.add_argument("--resume", type=bool, default=False, help="continue what --out holds")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace what --out holds")
    options = dict(vars(parse(parser, argv)))
    out, resume, overwrite = Path(options.pop("out")), options.pop("resume"), options.pop("overwrite")
    return pretrain_extractor(ExtractorConfig(**options), out, resume, overwrite)


def _spread(workers: int | None, threads: int | None) -> tuple[int, int | None]:
    """Runs at a time, and threads of each: together the cores at hand unless told otherwise."""
    workers = cores() if workers is None else workers
    return workers, threads or (max(1, cores() // workers) if workers > 0 else None)
