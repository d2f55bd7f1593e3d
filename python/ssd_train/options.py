"""Options into settings: the parser of `ssd-train run`, its YAML files and recipes, and errors in one line."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
import typing
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from .config import TrainConfig, read_config, recipe_names, recipe_settings
from .errors import BadInput

PRETRAINING = {"method": "joint", "model": "sdmlp", "momentum": 0.9, "lr": 0.03, "epochs": 300}


def parse_run(argv: list[str], changed: dict[str, Any] | None = None) -> TrainConfig:
    """The settings of a run. Options win over --config, that over the recipe, that over the defaults.

    Args:
        changed: defaults that differ from those of `run`, for a command like `pretrain`; they win over the recipe.

    Raises:
        BadInput: an option that does not exist, or a value of the wrong kind.
    """
    parser = run_parser()
    quiet = [a for a in argv if a not in ("-h", "--help") and not a.startswith("--print")]
    given = parse(parser, quiet, defaults=False)
    out, recipe = getattr(given, "out", None), getattr(given, "recipe", None)
    if recipe is None and getattr(given, "data", None) == "digits":
        recipe = "digits"
    base = {} if recipe is None else {"recipe": recipe, **recipe_settings(recipe)}
    saved = Path(out) / "config.yaml" if out is not None else None
    if getattr(given, "resume", False) and saved is not None and saved.exists():
        base, recipe = {k: v for k, v in read_config(saved).items() if k != "out"}, None
    base |= changed or {}
    if getattr(given, "resume", False) and saved is not None and "data" not in base and "data" not in given:
        raise BadInput(f"{saved}: no such file, and no --data; a run is resumed from its config.yaml")
    try:
        parser.set_defaults(vars(parser.parse_object(base, defaults=False)))
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{recipe or saved}: {_one_line(str(error), parser)}") from None
    settings = {k: v for k, v in vars(parse(parser, argv)).items() if k not in ("config", "print_config")}
    config = TrainConfig(**settings)
    if config.out is None and not config.resume:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config.data or "run").stem)
        config.out = f"runs/{stem}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config


def run_parser() -> ArgumentParser:
    """The options of `ssd-train run`: one per field of TrainConfig."""
    description = f"Trains a method on a sequence of tasks. Recipes: {', '.join(recipe_names())}."
    parser = ArgumentParser(prog="ssd-train run", exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of options, as --print_config prints it")
    types = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=types[field.name], default=field.default, help=field.metadata["help"])
    return parser


def parse(parser: ArgumentParser, argv: list[str], defaults: bool = True) -> Namespace:
    """Parses the options.

    Raises:
        BadInput: in one line, the option, what was given and what is allowed.
    """
    for word, following in itertools.pairwise([*argv, ""]):
        path = Path(word.removeprefix("--config=") if word.startswith("--config=") else following)
        if word.startswith("--config") and path.exists():
            read_config(path)  # jsonargparse would expand aliases without end
    try:
        return parser.parse_args(_normalize(argv, parser), defaults=defaults)
    except ArgumentError as error:
        raise BadInput(_one_line(str(error), parser)) from None


def _normalize(argv: list[str], parser: ArgumentParser) -> list[str]:
    """Accepts underscores in option names, a switch without its `true`, and `inf`, which YAML writes `.inf`."""
    floats = {a.option_strings[0] for a in parser._actions if getattr(a, "_typehint", None) == float | None}
    switches = {a.option_strings[0] for a in parser._actions if getattr(a, "_typehint", None) is bool}
    result: list[str] = []
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--print_config" if name == "--print-config" else name
            name = name if name == "--print_config" else name.replace("_", "-")
        of = name if equals else result[-1] if result else ""
        if of in floats and (value if equals else word).lower().lstrip("+") in ("inf", "infinity"):
            name, value = (name, ".inf") if equals else (".inf", value)
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


def split_options(parser: ArgumentParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """The options that `parser` knows, with their values, and all others."""
    known = {option for action in parser._actions for option in action.option_strings}
    mine, rest, target = [], [], None
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("-") and not name.lstrip("-")[:1].isdigit():
            target = mine if name in known else rest
        (rest if target is None else target).append(word)
    return mine, rest
