"""Exports a snapshot to a safetensors file, and makes a model's first snapshot of such a file, without a server.

Imports its neighbours and the error tree.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import ConfigurationError, NumbaAdamError
from numba_adam.numerics.eight_bit import blocks_of
from numba_adam.ps.guards import Guards
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.modes import Durability
from numba_adam.server.model.arena import FlatArray, split
from numba_adam.server.model.columns import SCALE
from numba_adam.server.model.names import check_model_name
from numba_adam.server.model.options import options_from
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.steering import Steering
from numba_adam.server.storage import safetensors_file
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.durable import TEMPORARY, make_folder, replace, sync_folder, write_new
from numba_adam.server.storage.keys import NO_KEYS, Keys
from numba_adam.server.storage.last_run import LastRun
from numba_adam.server.storage.manifest import Manifest, Run, read_manifest, read_run
from numba_adam.server.storage.restoring import model_folder
from numba_adam.server.storage.safetensors_file import Exchanged
from numba_adam.server.storage.segments import Segments
from numba_adam.server.storage.snapshot import Arrays, Snapshot
from numba_adam.server.storage.snapshot_files import describe, numbers_in, path_of
from numba_adam.server.storage.unused import unused
from numba_adam.server.storage.verification import arrays_for
from numba_adam.settings.hyperparameters import Hyperparameters

_OF_MODE = ("mode", "rounds", "staleness")
_KEPT = ("hyperparameters", "durability", "guards", "options")  # of a spec's record


def _current(spec: Spec, snapshot: Snapshot) -> dict[str, Any]:
    """Return the hyperparameters of the next push: of the first group, if there are several."""
    now = _settings_of(spec, snapshot).groups[0].at(snapshot.ledger["version"])
    return {**asdict(now), "betas": list(now.betas)}


def _current_mode(spec: Spec, snapshot: Snapshot) -> ModeSettings:
    return _settings_of(spec, snapshot).mode or spec.mode_settings


def _settings_of(spec: Spec, snapshot: Snapshot) -> Steering:
    changes = snapshot.ledger.get("changes")
    return Steering.from_record(changes["settings"]) if changes else spec.first_settings


class Exported(NamedTuple):
    """What was exported."""

    number: int
    """The snapshot."""

    version: int
    """Version of the model in it."""

    why_not_last: str
    """Why it may not be the model's last state; empty if it is."""


def export_model(folder: Path, name: str, out: Path, number: int | None = None, keys: Keys = NO_KEYS) -> Exported:
    """Write a snapshot of a model to a safetensors file.

    Args:
        folder: the data folder.
        name: the model.
        out: the new file.
        number: the snapshot; None: the newest.
        keys: of the data folder.

    Raises:
        ConfigurationError: there is no such folder, model or snapshot, a server uses it, or the file exists.
        CorruptSnapshotError, SnapshotError: the snapshot is damaged, or cannot be read.
        OSError: the file cannot be written.
    """
    with unused(folder, "export from a copy", is_exclusive=False):
        place = model_folder(folder, name)
        kept = sorted(numbers_in(place))
        chosen = kept[-1] if number is None and kept else number
        if chosen not in kept or chosen is None:
            raise ConfigurationError(
                f"model {name!r} has no such snapshot; it has {', '.join(map(str, kept)) or 'none'}"
            )
        path = path_of(place, chosen)
        flats: dict[str, FlatArray] = {}

        def memory_for(snapshot: Snapshot) -> Arrays:
            flats.update(arrays_for(snapshot))
            return flats

        found = snapshots.read(path, memory_for, keys)
        why = "a newer snapshot exists"
        if chosen == kept[-1]:
            last_run = LastRun(folder, (folder / "lock").read_bytes(), keys)
            why = last_run.why_rewound(name, describe(path, chosen, found))
    spec = Spec.from_record(found.model)
    columns = {column: _named(spec, column, flat) for column, flat in flats.items()}
    steps = dict(zip(columns["param"], found.ledger["steps"], strict=True))
    settings = {key: value for key, value in spec.to_record().items() if key in _KEPT}
    settings["hyperparameters"] = _current(spec, found)
    settings |= _current_mode(spec, found).to_record()
    safetensors_file.write(out, Exchanged(settings, spec.tensors, columns, steps))
    return Exported(chosen, found.ledger["version"], why)


def import_model(
    folder: Path,
    name: str,
    source: Path,
    changes: Mapping[str, Any],
    durability: Durability | None = None,
    keys: Keys = NO_KEYS,
) -> Spec:
    """Make a model of a safetensors file: its first snapshot, at version 0 of a new state.

    Args:
        folder: the data folder; created if it does not exist.
        name: of the new model.
        source: the file.
        changes: hyperparameters that replace those of the file.
        durability: None: that of the file.
        keys: of the data folder.

    Raises:
        ConfigurationError: the file or the folder cannot be used, a server uses it, or the model exists.
        InvalidRequestError: the name of the model or of an array cannot be used.
        HyperparameterError: a hyperparameter is out of range.
        OSError: the folder cannot be written.
    """
    check_model_name(name)
    state = safetensors_file.read(source)
    spec = _spec(name, state, changes, durability)
    ledger = PushLedger(secrets.token_hex(16), len(spec.tensors))
    ledger.steps = [state.steps[tensor.name] for tensor in spec.tensors]
    flats = {column: _flat(spec, arrays) for column, arrays in state.columns.items()}
    snapshot = Snapshot({**spec.to_record(), "request_id": secrets.token_hex(16)}, ledger.to_record())

    def capture(descriptor: int) -> int:
        return snapshots.write(descriptor, snapshot, flats, keys)

    if (folder / "lock").exists():
        with unused(folder, "import into another folder", is_exclusive=True):
            _add(folder, spec, snapshot, capture, keys)
    else:
        _begin(folder, spec, snapshot, capture, keys)
    return spec


def _begin(folder: Path, spec: Spec, snapshot: Snapshot, capture: Callable[[int], int], keys: Keys) -> None:
    """Make a data folder with one model."""
    saved: list[str] = []
    data = DataFolder(folder, kept=1, keys=keys)
    try:
        data.begin()
        data.write(spec.name, capture)
        _begin_journal(data.path, spec, snapshot, data.next_run_id, keys)
        saved.append(spec.name)
    finally:
        data.close(saved)


def _add(folder: Path, spec: Spec, snapshot: Snapshot, capture: Callable[[int], int], keys: Keys) -> None:
    """Add a model to a data folder, as if the last run had created it."""
    run, manifest = read_run(folder / "run", keys), read_manifest(folder / "manifest", keys)
    if run is None or manifest is None or run.run_id != manifest.run_id:
        raise ConfigurationError(
            f"{str(folder)!r}: the last server on it was not stopped cleanly, and a start would go on from what it "
            "left; start a server on it, stop it, and import then"
        )
    place = folder / "models" / spec.name
    if place.exists():
        raise ConfigurationError(
            f"model {spec.name!r} exists in {str(folder)!r}: give another name, or delete it on a running server"
        )
    path = path_of(place, 1)
    try:
        make_folder(place)
        temporary = path.with_suffix(TEMPORARY)
        write_new(temporary, capture)
        temporary.rename(path)
        sync_folder(place)
        _begin_journal(folder, spec, snapshot, run.run_id, keys)
        listed = Run(run.run_id, tuple(sorted({*run.models, spec.name})))
        replace(folder / "run", lambda descriptor: listed.write(descriptor, keys))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    entry = describe(path, 1, snapshot)
    added = Manifest(run.run_id, {**manifest.models, spec.name: entry})
    replace(folder / "manifest", lambda descriptor: added.write(descriptor, keys))


def _begin_journal(folder: Path, spec: Spec, snapshot: Snapshot, run_id: str, keys: Keys) -> None:
    """Begin the journal of a model at the level `disk`, without which a start would report a rewind."""
    if spec.durability is not Durability.DISK:
        return
    segments = Segments(folder / "models" / spec.name, folder / "lock", keys)
    writer = segments.create()
    try:
        segments.begin(writer, (run_id,), snapshot.ledger, is_previous_synced=True)
        writer.sync()
    finally:
        writer.close()


def _spec(name: str, state: Exchanged, changes: Mapping[str, Any], durability: Durability | None) -> Spec:
    """Return the spec of a new model. A file without settings comes from PyTorch, whose eps_mode is "algorithm1"."""
    has_amsgrad = "max_exp_avg_sq" in state.columns
    try:
        settings = dict(state.settings)
        given = {"eps_mode": "algorithm1", "amsgrad": has_amsgrad, **settings.get("hyperparameters", {}), **changes}
        hyperparameters = Hyperparameters(**given)
        mode = ModeSettings.from_record({key: settings[key] for key in _OF_MODE if key in settings})
        level = durability or Durability(settings.get("durability", Durability.PROCESS))
        guards = Guards(**settings.get("guards", {}))
        options = options_from(settings.get("options", {}))
    except NumbaAdamError:
        raise
    except (TypeError, ValueError) as error:
        known = ", ".join(Hyperparameters.__dataclass_fields__)
        raise ConfigurationError(f"a setting is not known ({error}); the hyperparameters are {known}") from error
    if hyperparameters.amsgrad != has_amsgrad:
        raise ConfigurationError(
            f"amsgrad={hyperparameters.amsgrad}: the file {'has' if has_amsgrad else 'lacks'} max_exp_avg_sq.NAME, "
            "which AMSGrad alone has"
        )
    dtype = next(iter(state.columns["param"].values())).dtype
    return Spec.checked(name, dtype, state.tensors, hyperparameters, mode, level, guards, options)


def _named(spec: Spec, column: str, flat: FlatArray) -> dict[str, FlatArray]:
    """Return the arrays of a model in a flat array, by name."""
    has_scales = column.endswith(SCALE)
    shapes = [(blocks_of(tensor.size),) if has_scales else tensor.shape for tensor in spec.tensors]
    views = split(flat, map(math.prod, shapes))
    triples = zip(spec.tensors, views, shapes, strict=True)
    return {tensor.name: view.reshape(shape) for tensor, view, shape in triples}


def _flat(spec: Spec, arrays: Mapping[str, FlatArray]) -> FlatArray:
    return np.concatenate([np.ravel(arrays[tensor.name]) for tensor in spec.tensors])
