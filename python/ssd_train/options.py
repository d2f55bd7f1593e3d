"""Options into settings: the parser of `ssd-train run`, its YAML files and recipes, and errors in one line."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import time
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from .config import GENERAL, TrainConfig, dump, from_dict, read_config, recipe_names, recipe_settings
from .errors import BadInput, bad, say
from .methods.find import did_you_mean, find_method, method_names, methods_with, option_names
from .model import NETWORKS

NO_SETTINGS = ("config", "print_config", "method_help")
PRINT_CONFIG = ("--print_config", "--print-config")
PRETRAINING = {"method": "joint", "model": "sdmlp", "momentum": 0.9, "lr": 0.03, "epochs": 300}


def parse_run(argv: list[str], changed: dict[str, Any] | None = None) -> TrainConfig:
    """The settings of a run. Options win over --config, that over the recipe, that over the defaults.

    Args:
        changed: defaults that differ from those of `run`, for a command like `pretrain`; they win over the recipe.

    Raises:
        BadInput: an option that does not exist or that the method does not know, or a value of the wrong kind.
        SystemExit: --help, --method-help or --print_config was asked for and has been printed.
    """
    config = from_dict(parse_settings(argv, changed))
    if config.out is None and not config.resume:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config.data or "run").stem)
        method = re.sub(r"[^A-Za-z0-9_+-]+", "-", config.method)
        config.out = f"runs/{stem}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config


def mention_idle(argv: list[str], config: TrainConfig) -> None:
    """A word on stderr about each typed option that the network has no use for.

    No error: one command line is to serve a comparison of methods whose networks differ.
    """
    network = NETWORKS.get(config.model or find_method(config.method).models[0])
    for option in typed_options(argv):
        if network is not None and option.removeprefix("--").replace("-", "_") in network.ignores:
            say(f"ssd-train: {option} does nothing here: {config.method} trains a {network.__name__}", file=sys.stderr)


def parse_settings(argv: list[str], changed: dict[str, Any] | None = None,
                   methods: Sequence[str] | None = None) -> dict[str, Any]:  # fmt: skip
    """The settings of a run, flat: every general one, and of the methods' own those that were given.

    Args:
        methods: the methods of the rows that share these settings; by default the one that is asked for. What one of
            them knows may be typed.

    Raises:
        BadInput, SystemExit: as `parse_run`.
    """
    general = run_parser()
    wanted = [a for a in argv if a not in PRINT_CONFIG]
    quiet = [a for a in wanted if a not in ("-h", "--help")]
    given = vars(parse(general, split_options(general, quiet)[0], defaults=False))
    if name := given.get("method_help"):
        say(method_help(name))
        raise SystemExit(0)
    base, source = _layers(given, changed)
    names = list(methods or [given.get("method") or base.get("method") or TrainConfig.method])
    parser = run_parser(names)
    base = reaching(base, names, source)
    try:
        parsed = vars(parser.parse_object({k: v for k, v in base.items() if k in GENERAL}, defaults=False))
        own = vars(parser.parse_object({k: v for k, v in base.items() if k not in GENERAL}, defaults=False))
        parser.set_defaults(parsed)
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{source}: {_one_line(str(error), parser)}") from None
    _refuse_useless(wanted, parser, names)
    shown = vars(parse(parser, wanted))
    typed = vars(parse(parser, quiet, defaults=False))
    settings = {k: v for k, v in shown.items() if k in GENERAL}
    settings |= {k: v for k, v in own.items() if k in base}
    settings |= {k: v for k, v in typed.items() if k not in GENERAL and k not in NO_SETTINGS}
    if wanted != argv:
        say(dump(from_dict(settings | defaults_of(names[0], settings))).rstrip())
        raise SystemExit(0)
    return settings


def _layers(given: dict[str, Any], changed: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """What stands below the options typed: recipe, changed defaults, --config; or the saved run's own. And its name."""
    saved = Path(given["out"]) / "config.yaml" if given.get("out") is not None else None
    if given.get("resume") and saved is not None and saved.exists():
        return {k: v for k, v in read_config(saved).items() if k != "out"}, str(saved)
    missing = given.get("resume") and saved is not None and "data" not in given
    file = {}
    if given.get("config") is not None:
        if not Path(given["config"]).exists():
            raise bad("--config", given["config"], "an existing file")
        file = read_config(Path(given["config"]))
    if missing and not file and "recipe" not in given:
        raise BadInput(f"{saved}: no such file, and no --data; a run is resumed from its config.yaml")
    recipe = given.get("recipe") or file.get("recipe")
    if recipe is None and (given.get("data") or file.get("data")) == "digits":
        recipe = "digits"
    base = {} if recipe is None else {"recipe": recipe, **recipe_settings(recipe)}
    return base | (changed or {}) | file, given.get("config") or recipe or "settings"


def reaching(settings: dict[str, Any], methods: Sequence[str], source: str,
             others: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """The flat settings without the options of other methods than these.

    Args:
        others: methods of other rows, whose options may be among the settings, beside those of every known method.

    Raises:
        BadInput: a setting that is neither general nor any method's.
    """
    own = {name for method in methods for name in option_names(find_method(method))}
    kept = {}
    for name, value in settings.items():
        if name in GENERAL or name in own:
            kept[name] = value
        elif not methods_with(name, [*method_names(), *others]):
            raise BadInput(f"{source}: unknown setting {name!r}{did_you_mean(name, [*GENERAL, *own])}")
    return kept


def config_of(source: str = "settings", /, **settings: Any) -> TrainConfig:
    """The config of flat settings, without the options of other methods than its own.

    Args:
        source: where the settings come from, for errors.

    Raises:
        BadInput: no such method, or a setting that is neither general nor any method's.
    """
    return from_dict(reaching(settings, [settings.get("method", TrainConfig.method)], source))


def _refuse_useless(argv: list[str], parser: ArgumentParser, methods: Sequence[str]) -> None:
    """What was typed must do something for one of the methods."""
    known = {option for action in parser._actions for option in action.option_strings}
    classes, names = [find_method(m) for m in methods], ", ".join(methods)
    for option in typed_options(argv):
        name = option.removeprefix("--").replace("-", "_")
        if option not in known and (others := methods_with(name)):
            raise BadInput(f"{option}: no option of --method {names}; it is one of {', '.join(others)}")
        if all(name in c.ignores for c in classes):
            raise BadInput(f"{option}: does nothing with --method {names}, which has no use for it")


def typed_options(argv: list[str]) -> list[str]:
    """The options in a command line, as they are listed: `--n-distill` for `--n_distill=3`."""
    words = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    return [w if w in ("--print_config",) else w.replace("_", "-") for w in words]


def run_parser(methods: Sequence[str] = ()) -> ArgumentParser:
    """The options of `ssd-train run`: one per field of TrainConfig, and the methods' own."""
    description = f"Trains a method on a sequence of tasks. Recipes: {', '.join(recipe_names())}. "
    description += f"Methods: {', '.join(method_names())}."
    parser = ArgumentParser(prog="ssd-train run", exit_on_error=False, description=description)
    parser.add_argument("--config", type=str | None, default=None, help="a YAML file of options, as --print_config "
                        "prints it")  # fmt: skip
    parser.add_argument("--print_config", type=bool, default=False, help="print the settings as YAML and exit")
    parser.add_argument("--method-help", type=str | None, default=None, help="a method: what it does, its options")
    _add_fields(parser, TrainConfig, leave_out={"options"})
    for method in methods:
        _add_fields(parser, find_method(method).Options, leave_out={a.dest for a in parser._actions})
    return parser


def _add_fields(parser: ArgumentParser, settings: type, leave_out: Collection[str] = ()) -> None:
    """An option per field of a dataclass. The run's own options stand in a group, a method's in another."""
    types = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = {"required": True} if default is dataclasses.MISSING else {"default": default}
        option, text = "--" + field.name.replace("_", "-"), field.metadata.get("help", "an option of the method")
        parser.add_argument(option, type=types[field.name], help=text, **required)


def checked_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """A method's own options, of the types that its `Options` declare.

    Raises:
        BadInput: an option that the method does not have, or a value of another type.
    """
    known = option_names(find_method(method))
    for name in options:
        if name not in known:
            listed = ", ".join(known) or "nothing: it has no options"
            raise BadInput(f"--{name.replace('_', '-')}: no option of --method {method}; allowed is {listed}"
                           f"{did_you_mean(name, known)}")  # fmt: skip
    parser = ArgumentParser(prog=f"--method {method}", exit_on_error=False)
    _add_fields(parser, find_method(method).Options)
    try:
        return vars(parser.parse_object(options))
    except (ArgumentError, KeyError, TypeError, ValueError) as error:
        raise BadInput(_one_line(str(error), parser)) from None


def defaults_of(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The method's own options, those of `settings` and the defaults of the others."""
    return checked_options(method, {k: v for k, v in settings.items() if k not in GENERAL})


def method_help(name: str) -> str:
    """What `--method-help` prints: the method's description, its networks, loss parts and options."""
    method = find_method(name)
    lines = [f"{name}: {inspect.cleandoc(method.__doc__ or '')}", "", f"networks: {', '.join(method.models)}"]
    lines += [f"parts of the loss: {', '.join(method.parts) or 'none'}"]
    types = typing.get_type_hints(method.Options)
    lines += ["options:" if types else "options: none"]
    for field in dataclasses.fields(method.Options):
        kind = str(types[field.name]).replace("typing.", "").replace("<class '", "").replace("'>", "")
        text = field.metadata.get("help", "")
        lines.append(f"  --{field.name.replace('_', '-')} {kind}, default {field.default!r}: {text}".rstrip(": "))
    if method.ignores:
        lines.append("no use for: " + ", ".join("--" + n.replace("_", "-") for n in sorted(method.ignores)))
    return "\n".join(lines)


def parse(parser: ArgumentParser, argv: list[str], defaults: bool = True) -> Namespace:
    """Parses the options. Their names are taken whole: a prefix is no option.

    Raises:
        BadInput: in one line, the option, what was given and what is allowed.
    """
    known = [option for action in parser._actions for option in action.option_strings]
    for option in typed_options(argv):
        if option not in known:
            hint = did_you_mean(option, [k for k in known if k.startswith("--")])
            raise BadInput(f"{option}: no option of {parser.prog}{hint or f' (see {parser.prog} --help)'}")
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
