"""The records of the last run: whether a model continues, and which models must exist.

The folder alone, without a server: tests/server/test_rewind.py has the same through a server and its clients.
"""

import shutil

import numpy as np
import pytest

from numba_adam.errors import ConfigurationError, SnapshotError
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.snapshot import Snapshot

GROUPS = ("param", "exp_avg", "exp_avg_sq")
CRASHED = "the last server was not stopped cleanly"
OTHER_RUN = "the manifest is not from the last run"
NO_RUN = "the record of the last run is missing or damaged"
COPIED = "its snapshot is a copy, or was moved or changed since the server stopped"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def put(data_folder, version, name="model"):
    """Write a snapshot of a model whose version and parameters are `version`."""
    record = Snapshot({"name": name, "tensors": [{"name": "x", "shape": [4]}]}, {"version": version, "state_id": "s"})
    arrays = {group: np.full(4, version, np.float32) for group in GROUPS}
    data_folder.write(name, lambda descriptor: snapshots.write(descriptor, record, arrays))


def run(folder, *versions, saved=True, names=("model",)):
    """Make a run that writes these versions of its models and stops cleanly."""
    data_folder = DataFolder(folder, 3)
    for name in data_folder.model_names():
        restore(data_folder, name)
    data_folder.begin()
    for name in names:
        for version in versions:
            put(data_folder, version, name)
    assert data_folder.close(data_folder.model_names() if saved else [])


def restore(data_folder, name="model"):
    """Return the restored version, and why the model may be rewound."""
    arrays = {group: np.zeros(4, np.float32) for group in GROUPS}
    found = data_folder.restore(name, lambda _: arrays)
    return found.snapshot.ledger["version"], found.why_rewound


def look(folder, name="model"):
    """Return the restored model of a start that does not begin a run."""
    data_folder = DataFolder(folder, 3)
    try:
        assert name in data_folder.model_names()
        return restore(data_folder, name)
    finally:
        data_folder.close()


def file(folder, number):
    return folder / "models" / "model" / f"{number:08d}.snapshot"


def copy_over(source, target):
    content = source.read_bytes()
    target.unlink()
    target.write_bytes(content)
    target.chmod(0o600)


def damage(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def as_in_the_first_format(folder):
    remove(folder, "run", "manifest")
    (folder / "lock").write_bytes(b"")


def test_a_model_continues_after_any_number_of_clean_stops(folder):
    run(folder, 1, 2, 3)
    for _ in range(3):
        assert look(folder) == (3, "")
        run(folder)
    run(folder, 4)
    assert look(folder) == (4, "")


# What becomes of a folder after a clean stop at version 3, and what a start says of it.
TAMPERINGS = {
    "the newest snapshot is missing": (
        lambda folder: file(folder, 3).unlink(),
        2,
        "the server stopped at version 3 of state s, snapshot 3, and the newest snapshot is 2, of version 2 of state s",
    ),
    "an older snapshot has the name of the newest": (
        lambda folder: file(folder, 2).rename(file(folder, 3)),
        2,
        "the server stopped at version 3 of state s, snapshot 3, and the newest snapshot is 3, of version 2 of state s",
    ),
    "a copy has the name of the newest": (lambda folder: copy_over(file(folder, 3), file(folder, 3)), 3, COPIED),
    "the newest snapshot is damaged": (lambda folder: damage(file(folder, 3)), 2, "a newer snapshot is damaged"),
    "the manifest is missing": (lambda folder: remove(folder, "manifest"), 3, CRASHED),
    "the manifest is damaged": (
        lambda folder: damage(folder / "manifest"),
        3,
        "the manifest of the last clean stop is damaged",
    ),
    "the record of the run is missing": (lambda folder: remove(folder, "run"), 3, NO_RUN),
    "the record of the run is damaged": (lambda folder: damage(folder / "run"), 3, NO_RUN),
    "both are missing": (lambda folder: remove(folder, "run", "manifest"), 3, CRASHED),
    "the lock is missing too": (lambda folder: remove(folder, "run", "manifest", "lock"), 3, CRASHED),
    "the lock alone is missing": (lambda folder: remove(folder, "lock"), 3, ""),
    "the lock alone is empty": (lambda folder: (folder / "lock").write_bytes(b""), 3, ""),
    "the lock is empty and the run is missing": (
        lambda folder: [(folder / "lock").write_bytes(b""), remove(folder, "run")],
        3,
        NO_RUN,
    ),
    "the lock is empty and the manifest is missing": (
        lambda folder: [(folder / "lock").write_bytes(b""), remove(folder, "manifest")],
        3,
        CRASHED,
    ),
    "the release before wrote it": (as_in_the_first_format, 3, ""),
    "the release before wrote it and crashed": (
        lambda folder: [as_in_the_first_format(folder), (folder / "running").touch(mode=0o600)],
        3,
        CRASHED,
    ),
}


@pytest.mark.parametrize("case", TAMPERINGS)
def test_a_start_says_why_a_model_may_be_rewound(folder, case):
    run(folder, 1, 2, 3)
    tamper, version, why = TAMPERINGS[case]
    tamper(folder)
    assert look(folder) == (version, why)


@pytest.mark.parametrize("older", ["run", "manifest"])
def test_a_manifest_of_another_run_is_not_valid(folder, tmp_path, older):
    run(folder, 1)
    shutil.copy2(folder / older, tmp_path / older)
    run(folder)
    shutil.copy2(tmp_path / older, folder / older)
    assert look(folder) == (1, OTHER_RUN)


def test_only_a_model_that_was_not_saved_at_the_stop_is_rewound(folder):
    run(folder, 1, names=("model", "other"))
    data_folder = DataFolder(folder, 3)
    assert [restore(data_folder, name)[1] for name in data_folder.model_names()] == ["", ""]
    data_folder.begin()
    assert data_folder.close(["other"])
    assert look(folder) == (1, "its last state was not saved when the server stopped")
    assert look(folder, "other") == (1, "")


@pytest.mark.parametrize("gone", ["neither", "run", "manifest"])
def test_a_missing_model_is_found_by_the_run_record_and_the_manifest(folder, gone):
    run(folder, 1, names=("model", "other"))
    if gone != "neither":
        remove(folder, gone)
    shutil.rmtree(folder / "models" / "model")
    data_folder = DataFolder(folder, 3)
    with pytest.raises(SnapshotError, match="there is no snapshot of 'model' in "):
        data_folder.model_names()
    with pytest.raises(SnapshotError, match="remove what is left of its folder"):
        data_folder.begin()
    data_folder.close()


def empty_model(folder, name="half"):
    (folder / "models" / name).mkdir(mode=0o700)
    (folder / "models" / name / "00000001.writing").touch(mode=0o600)


@pytest.mark.parametrize("names", [("model",), ()], ids=["other models", "no other model"])
@pytest.mark.parametrize("left", ["run and manifest", "run", "manifest", "the release before"])
def test_a_creation_interrupted_by_a_crash_is_removed(folder, left, names):
    """The list of names is complete, so this model was never acknowledged."""
    run(folder, 1, names=names)
    empty_model(folder)
    if left == "the release before":
        as_in_the_first_format(folder)
    else:
        remove(folder, *({"run", "manifest"} - set(left.split(" and "))))
    data_folder = DataFolder(folder, 3)
    assert data_folder.model_names() == list(names)
    data_folder.begin()
    assert not (folder / "models" / "half").exists()
    data_folder.close()


def test_without_a_list_of_names_a_model_without_a_snapshot_stops_the_start(folder):
    run(folder, 1)
    empty_model(folder)
    remove(folder, "run", "manifest")
    data_folder = DataFolder(folder, 3)
    with pytest.raises(SnapshotError, match="there is no snapshot of 'half'"):
        data_folder.model_names()
    data_folder.close()
    assert (folder / "models" / "half" / "00000001.writing").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"numba-adam data folder, format 3\n", "lock'.* format 3, and .* reads format 2; use the release"),
        (b"numba-adam data folder, format 1\n", "lock'.* format 1, and .* reads format 2; use the release"),
        (b"numba-adam data folder, format 2", "this is not a numba-adam data folder"),
        (b"numba-adam data folder, format 2\nmore", "this is not a numba-adam data folder"),
        (b"x" * 100, f"begins with b'{'x' * 80}': this is not"),
    ],
)
def test_a_lock_file_with_other_content_is_refused_and_kept(folder, text, words):
    run(folder, 1)
    (folder / "lock").write_bytes(text)
    for _ in range(2):  # the refusal lets the lock go
        with pytest.raises(ConfigurationError, match=words):
            DataFolder(folder, 3)
    assert (folder / "lock").read_bytes() == text
    (folder / "lock").write_bytes(b"numba-adam data folder, format 2\n")
    assert look(folder) == (1, "")


def test_the_lock_file_has_the_format(folder):
    run(folder, 1)
    assert (folder / "lock").read_bytes() == b"numba-adam data folder, format 2\n"
