"""The command `ssd-train`: options, one-line errors, exit codes (0 done, 2 bad input, 130 / 143 interrupted)."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
import typing
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from . import __version__
from .config import TrainConfig, read_config, recipe_names, recipe_settings
from .errors import BadInput

USAGE = """usage: ssd-train COMMAND [options]

commands:
  run      train a method on a sequence of tasks
  report   compare finished runs in one table
  eval     test the models of a run on data

ssd-train COMMAND --help lists the options. Exit codes: 0 done, 2 bad input, 130 or 143 interrupted (state saved)."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; every expected error is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"run": _run, "report": _report, "eval": _eval}
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(USAGE)
            return 0 if argv else 2
        if argv[0] == "--version":
            print(__version__)
            return 0
        if argv[0] not in commands:
            raise BadInput(f"command: got {argv[0]!r}, allowed is {', '.join(commands)}")
        return commands[argv[0]](argv[1:])
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BadInput, ArgumentError, OSError) as error:
        print(f"ssd-train: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ssd-train: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    from .runner import run

    return run(parse_run(argv), ["run", *argv])


def _report(argv: list[str]) -> int:
    from .report.compare import compare

    parser = ArgumentParser(prog="ssd-train report", exit_on_error=False, description="Compares finished runs.")
    parser.add_argument("runs", nargs="+", type=str, help="folders that `ssd-train run` wrote")
    parser.add_argument("--format", choices=["table", "markdown", "json"], default="table", help="how to print it")
    options = _parse(parser, argv)
    return compare([Path(p) for p in options.runs], options.format)


def _eval(argv: list[str]) -> int:
    from .evaluate import evaluate

    parser = ArgumentParser(prog="ssd-train eval", exit_on_error=False, description="Tests saved models.")
    parser.add_argument("model", type=str, help="the folder of a run, or one model.safetensors")
    parser.add_argument("--data", type=str | None, default=None, help="data to test on; by default the run's own")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or cuda:N")
    options = _parse(parser, argv)
    return evaluate(Path(options.model), options.data, options.device)


def parse_run(argv: list[str]) -> TrainConfig:
    """The settings of a run. Options win over --config, that over the recipe, that over the defaults.

    Raises:
        BadInput: an option that does not exist, or a value of the wrong kind.
    """
    parser = _run_parser()
    quiet = [a for a in argv if a not in ("-h", "--help") and not a.startswith("--print")]
    given = _parse(parser, quiet, defaults=False)
    out, recipe = getattr(given, "out", None), getattr(given, "recipe", None)
    if recipe is None and getattr(given, "data", None) == "digits":
        recipe = "digits"
    base = {} if recipe is None else {"recipe": recipe, **recipe_settings(recipe)}
    saved = Path(out) / "config.yaml" if out is not None else None
    if getattr(given, "resume", False) and saved is not None and saved.exists():
        base, recipe = {k: v for k, v in read_config(saved).items() if k != "out"}, None
    try:
        parser.set_defaults(vars(parser.parse_object(base, defaults=False)))
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{recipe or saved}: {_one_line(str(error), parser)}") from None
    settings = {k: v for k, v in vars(_parse(parser, argv)).items() if k not in ("config", "print_config")}
    config = TrainConfig(**settings)
    if config.out is None and not config.resume:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config.data or "run").stem)
        config.out = f"runs/{stem}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config


def _run_parser() -> ArgumentParser:
    description = f"Trains a method on a sequence of tasks. Recipes: {', '.join(recipe_names())}."
    parser = ArgumentParser(prog="ssd-train run", exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of options, as --print_config prints it")
    types = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=types[field.name], default=field.default, help=field.metadata["help"])
    return parser


def _parse(parser: ArgumentParser, argv: list[str], defaults: bool = True) -> Namespace:
    try:
        return parser.parse_args(_normalize(argv, parser), defaults=defaults)
    except ArgumentError as error:
        raise BadInput(_one_line(str(error), parser)) from None


def _normalize(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Accepts underscores in option names, and a switch without its `true`."""
    switches = {a.option_strings[0] for a in parser._actions if getattr(a, "_typehint", None) is bool}
    result: list[str] = []
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--print_config" if name == "--print-config" else name
            name = name if name == "--print_config" else name.replace("_", "-")
        result.append(name + equals + value)
        following = argv[i + 1].lower() if i + 1 < len(argv) else ""
        if name in switches and not equals and following not in ("true", "false", "yes", "no"):
            result.append("true")
    return result


def _one_line(message: str, parser: Any) -> str:
    """jsonargparse's message in this package's wording: the option, what was given, what is allowed."""
    if missing := re.search(r"File does not exist: '(.*)'", message):
        return f"--config: got {missing.group(1)!r}, allowed is an existing file"
    found = re.search(r'Parser key "([^"]+)".*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if not found:
        return f"{' '.join(message.split())} (see {parser.prog} --help)"
    name, value = found.group(1), " ".join(found.group(2).split())
    action = next((a for a in parser._actions if a.dest == name), None)
    kind = str(getattr(action, "_typehint", "")).replace("typing.", "").replace("<class '", "").replace("'>", "")
    text = f"; {action.help}" if action is not None else ""
    return f"--{name.replace('_', '-')}: got {value!r}, allowed is {kind}{text}"


if __name__ == "__main__":
    sys.exit(main())
