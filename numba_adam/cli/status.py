"""`numba-adam status`: show the status of a running server. May import what cli.connection may."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from numba_adam.cli import connection

if TYPE_CHECKING:
    from numba_adam.client.info import ModelStatus, ServerStatus
    from numba_adam.client.settings import GroupInfo, SettingsInfo
    from numba_adam.settings.options import Options

_DESCRIPTION = """\
Show the status of a running server: its models with their versions and counters of pushes, its memory and threads.
"""
_EPILOG = """\
examples:
  numba-adam status
  numba-adam status --server 127.0.0.1:6000 --json
"""


_LOSSES = {"memory": "a crash", "process": "a stop of the machine"}  # what loses the versions since the last snapshot


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Request the status and print it."""
    with connection.connect(arguments) as client:
        status = client.status()
    if arguments.json:
        connection.print_json(status)
    else:
        print("\n".join(_lines(arguments.server, status)))
    return 0


def _lines(server: str, status: ServerStatus) -> list[str]:
    used, budget = (connection.bytes_in_words(n) for n in (status.memory_used_bytes, status.memory_budget_bytes))
    threads = f"{status.threads} ({status.threading_layer})" if status.threading_layer else str(status.threads)
    lines = [
        f"server     {server}, numba-adam {status.server_version}, up for {_duration(status.uptime_seconds)}",
        f"memory     {used} of {budget}",
        f"threads    {threads}",
    ]
    if status.compiling:
        lines.append(f"compiling  kernels for models of {status.compiling}; new models wait for them")
    for model in status.models:
        lines += ["", *_model_lines(model)]
    return lines if status.models else [*lines, "", "no models"]


def _model_lines(status: ModelStatus) -> list[str]:
    model = status.model
    unsaved = model.version - model.snapshot_version
    cause = _LOSSES.get(model.durability)
    loss = f"of which {cause} would lose {unsaved}" if cause else "all on disk"
    return [
        f"model      {model.name}: {model.parameter_count:,} parameters in {len(model.shapes)} arrays of {model.dtype}",
        *([f"  state    {state}"] if (state := _state(model.options)) else []),
        f"  version  {model.version}, {loss} (durability {model.durability})",
        f"  pushes   {status.pushes_applied} applied, {status.pushes_repeated} repeated, "
        f"{status.pushes_rejected} rejected since the server started",
        f"  mode     {_mode(status)}",
        f"  workers  {status.workers}, mean staleness of their pushes {status.mean_staleness:.3g}",
        *(() if model.settings is None else _setting_lines(model.settings)),
    ]


def _mode(status: ModelStatus) -> str:
    """Return the mode in words: with "sync" the open round, with "ssp" its bound."""
    model = status.model
    if model.rounds is not None:
        backup = f" and {model.rounds.backup} backup" if model.rounds.backup else ""
        return (
            f"{model.mode}, {model.rounds.needed}{backup} workers; round {model.version + 1} has {status.held_pushes} "
            "gradients"
        )
    return model.mode if model.staleness is None else f"{model.mode}, staleness {model.staleness}"


def _state(options: Options) -> str:
    """Return what a model keeps besides moments of its own dtype; empty if nothing."""
    parts = [f"moments in {options.state_dtype}"] if options.state_dtype else []
    parts += ["rounded stochastically"] if options.rounding == "stochastic" else []
    parts += [f"seed {options.seed}"] if options.seed else []
    parts += [] if options.ema_decay is None else [f"an average of the weights (ema_decay {options.ema_decay:g})"]
    return ", ".join(parts)


def _setting_lines(settings: SettingsInfo) -> list[str]:
    """Return the settings: each group's, and what differs from the defaults."""
    lines = []
    for index, group in enumerate(settings.groups):
        which = "" if len(settings.groups) == 1 else f"group {index} ({_some(group.params)}): "
        lines.append(f"  setting  {which}{_group(group)}")
    limits = (
        ("max_grad_norm", settings.max_grad_norm),
        ("clip_value", settings.clip_value),
        ("largest_staleness", settings.largest_staleness),
    )
    lines += [f"  setting  {name} {limit:g}" for name, limit in limits if limit is not None]
    lines += [f"  setting  staleness_power {settings.staleness_power:g}"] if settings.staleness_power else []
    if settings.frozen:
        lines.append(f"  frozen   {_some(settings.frozen)}")
    if settings.change:
        lines.append(f"  changed  {settings.change} times, last at version {settings.changed_at_version}")
    return lines


def _group(group: GroupInfo) -> str:
    values, schedule = group.hyperparameters, group.schedule
    words = [f"lr {values.lr:g}" + ("" if schedule is None else f" now, by {schedule}")]
    words += [f"betas {values.betas[0]:g} and {values.betas[1]:g}"]
    if values.weight_decay:
        words.append(f"weight_decay {values.weight_decay:g}" + (" decoupled" if values.decoupled_weight_decay else ""))
    words += ["maximize"] if values.maximize else []
    return ", ".join(words)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> _duration(5.2), _duration(150), _duration(9000), _duration(200_000)
    ('5 s', '2 min 30 s', '2 h 30 min', '2 d 7 h')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
