"""`numba-adam set`: change settings of a model while it trains. May import what cli.connection may."""

from __future__ import annotations

import argparse
import json
from typing import Any

from numba_adam.cli import connection
from numba_adam.errors import ConfigurationError, HyperparameterError

_DESCRIPTION = """\
Change settings of a model while it trains. Pushes that are applied later have the new settings. Settings that are not
named stay as they are. On a server with tokens, this needs the scope admin for the model.

settings:
  lr, eps, weight_decay              numbers
  betas                              two numbers: betas=0.9,0.95
  decoupled_weight_decay, maximize   true or false
  eps_mode                           hat or algorithm1
  max_grad_norm, clip_value          numbers; none: no limit any more
  staleness_power                    0, 0.5, 1, ... 4: learning rates are divided by (1 + staleness) to this power
  largest_staleness                  staler pushes are not applied; none: no limit any more
  mode                               async, sync or ssp, with what belongs to it (docs/modes.md):
  workers, backup, staleness         whole numbers
  round_timeout_seconds              a number
  lr may be a schedule, as JSON:     lr='{"cosine": {"begin": 1e-3, "end": 1e-5, "steps": 10000}}'
                                     constant, linear, cosine, inverse_square_root, piecewise, chained
"""
_EPILOG = """\
examples:
  numba-adam set digits lr=3e-4
  numba-adam set digits --group 1 weight_decay=0
  numba-adam set digits mode=sync workers=4 backup=1
  numba-adam set digits max_grad_norm=1 --freeze embedding --unfreeze head.w head.b
"""
_WORDS = {"true": True, "false": False}
_LIMITS = ("max_grad_norm", "clip_value", "largest_staleness")
_NUMBERS = ("lr", "eps", "weight_decay", "staleness_power", "round_timeout_seconds")
_WHOLE = ("largest_staleness", "workers", "backup", "staleness")
_TEXTS = ("eps_mode", "mode")
_FLAGS = ("decoupled_weight_decay", "maximize")


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("settings", metavar="NAME=VALUE", nargs="*", help="new values")
    parser.add_argument("--group", metavar="N", type=int, help="place of a group, as numba-adam status shows it")
    parser.add_argument("--freeze", metavar="ARRAY", nargs="+", default=[], help="arrays that pushes no longer change")
    parser.add_argument("--unfreeze", metavar="ARRAY", nargs="+", default=[], help="arrays that they change again")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Change the settings, and print the number of the change."""
    values = dict(map(_value, arguments.settings))
    with connection.connect(arguments) as client:
        model = client.open_model(arguments.model)
        change = model.set(group=arguments.group, freeze=arguments.freeze, unfreeze=arguments.unfreeze, **values)
    if arguments.json:
        connection.print_json({"model": arguments.model, "change": change.number, "version": change.version})
    else:
        print(f"{arguments.model}: change {change.number}, for every push after version {change.version}")
    return 0


def _value(text: str) -> tuple[str, Any]:
    """Return a name and a value.

    Raises:
        ConfigurationError: it is not NAME=VALUE, or the name is unknown.
        HyperparameterError: the value is of another kind.
    """
    name, equals, value = text.partition("=")
    if not equals or name not in (*_NUMBERS, *_FLAGS, *_LIMITS, *_WHOLE, *_TEXTS, "betas"):
        raise ConfigurationError(f"{text!r}: expected NAME=VALUE, such as lr=3e-4; see numba-adam set --help")
    try:
        return name, _parsed(name, value)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, HyperparameterError):
            raise
        raise HyperparameterError(f"{text!r}: its value cannot be read ({error}); see numba-adam set --help") from error


def _parsed(name: str, value: str) -> Any:
    if name in _FLAGS:
        return _WORDS[value.lower()]
    if name == "betas":
        return tuple(map(float, value.split(",")))
    if name in _TEXTS:
        return value
    if name in _LIMITS and value.lower() == "none":
        return float("inf")
    if name == "lr" and value.startswith("{"):
        from numba_adam.ps.schedule_records import schedule_of

        return schedule_of(json.loads(value))
    if name in _WHOLE:
        return int(value)
    return float(value)
