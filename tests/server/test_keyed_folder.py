"""A data folder with keys: nothing that someone without the key wrote is used; keys can be begun, changed and ended."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import ConfigurationError, NumbaAdamError, SnapshotError, UnauthenticatedError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GRADS = {"w": np.linspace(-1, 1, 300, dtype=np.float32)}
LEVELS = ("memory", "process", "disk")
REFUSED = r"no tag|tag is wrong|of the key|no seal|SHA-256 differs"
RECORDS = ("run", "manifest", "deletions", "tokens.json")


class Place:
    """A data folder, its key file, and the settings of its server."""

    def __init__(self, folder: Path) -> None:
        self.data, self.keys = folder / "data", folder / "adam.keys"
        (folder / "memory").mkdir(parents=True)
        self.bare = ServerConfig(
            listen="127.0.0.1:0",
            data_dir=self.data,
            memory_dir=folder / "memory",
            snapshot_interval_seconds=0,
            snapshot_every_pushes=0,
        )
        assert main(["snapshot-key", str(self.keys)]) == 0
        self.config = replace(self.bare, snapshot_key_file=self.keys)

    def fill(self, config: ServerConfig, *, ends: Callable[[Server], Any] = Server.stop) -> None:
        """Run a server: a model of each level with a push, and one that is deleted."""
        server = Server(config)
        server.start()
        with ParameterClient(server.address, timeout_seconds=800) as client:
            for level in LEVELS:
                client.create_model(level, GRADS, exist_ok=True, durability=level).push(GRADS)
            client.create_model("gone", GRADS, exist_ok=True, durability="memory")
            client.delete_model("gone")
        ends(server)

    def token(self, *words: str, keyed: bool = True) -> int:
        where = ["--data-dir", str(self.data), *(["--snapshot-key-file", str(self.keys)] if keyed else [])]
        return main(["token", *words, *where])

    def versions(self, config: ServerConfig) -> dict[str, tuple[int, str]]:
        """Return version and state id of each model, as a server has them."""
        with Server(config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
            models = {name: client.open_model(name) for name in LEVELS}
            return {name: (model.version, model.state_id) for name, model in models.items()}

    def change_lines(self, change: Callable[[list[str]], list[str]]) -> None:
        self.keys.write_text("".join(f"{line}\n" for line in change(self.keys.read_text().split())))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """After a clean stop, with every kind of file; tests use copies of its folder."""
    place = Place(tmp_path_factory.mktemp("keyed") / "place")
    place.fill(place.config)
    assert place.token("make", "alice", "--pull", "memory") == 0
    return place


@pytest.fixture
def copy(full: Place, tmp_path: Path) -> Place:
    place = Place(tmp_path / "copy")
    shutil.copytree(full.data, place.data)
    place.keys.write_bytes(full.keys.read_bytes())
    return place


def forged(raw: bytes, change: Callable[[dict[str, Any]], object], indent: int | None) -> bytes:
    """Return a record after a change by someone without the key: with a right checksum."""
    content = json.loads(raw)
    del content["xxh3_64"]
    change(content)
    plain = json.dumps(content, separators=(",", ":")).encode()
    content["xxh3_64"] = xxhash.xxh3_64_hexdigest(plain)
    return json.dumps(content, separators=(",", ": " if indent else ":"), indent=indent).encode() + b"\n"


def test_a_keyed_folder_continues_with_the_same_states(place) -> None:
    place.fill(place.config)
    first = place.versions(place.config)
    assert {name: version for name, (version, _) in first.items()} == dict.fromkeys(LEVELS, 1)
    place.fill(place.config)
    second = place.versions(place.config)
    assert second == {name: (2, state_id) for name, (_, state_id) in first.items()}


def test_every_file_that_decides_a_state_has_a_tag(full, capsys) -> None:
    assert main(["verify", str(full.data), "--snapshot-key-file", str(full.keys), "--json"]) == 0
    found = {each["path"]: each["found"] for each in json.loads(capsys.readouterr().out)["files"]}
    assert {path for path, words in found.items() if "with the tag of key" not in words} == {"lock"}
    assert set(RECORDS) < found.keys()
    assert any(path.endswith(".journal") for path in found)
    assert main(["verify", str(full.data)]) == 0
    assert capsys.readouterr().out.count("which was not checked") == len(found) - 1


def test_without_its_key_file_a_keyed_folder_is_refused_and_stays_as_it_is(copy, capsys) -> None:
    before = {path: path.read_bytes() for path in copy.data.rglob("*") if path.is_file()}
    with pytest.raises(NumbaAdamError, match="pass --snapshot-key-file"):
        Server(copy.bare)
    folder = str(copy.data)
    for words in (
        ["restore", folder, "memory", "--snapshot", "1"],
        ["export", folder, "memory", str(copy.data.parent / "out.safetensors")],
        ["token", "list", "--data-dir", folder],
        ["token", "make", "eve", "--admin", "*", "--data-dir", folder],
        ["token", "revoke", "alice", "--data-dir", folder],
    ):
        capsys.readouterr()
        assert main(words) == 1, words
        assert "--snapshot-key-file" in capsys.readouterr().err, words
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("how", ["changed", "without its tag", "of another key"])
@pytest.mark.parametrize("name", [*RECORDS[:3], "restored"])
def test_a_record_that_someone_without_the_key_wrote_stops_the_start(copy, name, how, capsys) -> None:
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "changed": lambda content: content.update(
            {"deletions": {"deletions": []}, "restored": {"version": 7}}.get(name, {"models": {}})
        ),
        "without its tag": lambda content: [content.pop("key_id"), content.pop("hmac_sha256")],
        "of another key": lambda content: content.update(key_id="0123456789abcdef"),
    }
    path = copy.data / name
    if name == "restored":
        path = copy.data / "models" / "memory" / name
        words = ["restore", str(copy.data), "memory", "--snapshot", "1", "--snapshot-key-file", str(copy.keys)]
        assert main(words) == 0
    path.write_bytes(forged(path.read_bytes(), changes[how], None))
    with pytest.raises(SnapshotError, match=REFUSED):
        Server(copy.config)
    assert main(["verify", str(copy.data), "--snapshot-key-file", str(copy.keys)]) == 1
    assert "1 of " in capsys.readouterr().out


@pytest.mark.parametrize("how", ["more grants", "without its tag"])
def test_a_token_that_someone_without_the_key_made_opens_nothing(copy, how, capsys) -> None:
    """The server refuses to start with such a file, and a running one accepts no token of it."""
    assert copy.token("make", "eve", "--admin", "*", keyed=False) == 1
    capsys.readouterr()
    assert copy.token("make", "bob", "--pull", "memory") == 0
    secret = capsys.readouterr().out.strip()
    path = copy.data / "tokens.json"
    whole = path.read_bytes()

    def more(content: dict[str, Any]) -> None:
        content["tokens"][1]["grants"] = {"*": "admin"}

    def untagged(content: dict[str, Any]) -> None:
        del content["key_id"], content["hmac_sha256"]

    evil = forged(whole, more if how == "more grants" else untagged, 1)
    config = replace(copy.config, loopback_token="required")
    path.write_bytes(evil)
    with pytest.raises(NumbaAdamError, match=REFUSED):
        Server(config).start()
    path.write_bytes(whole)
    with Server(config) as server, ParameterClient(server.address, token=secret, timeout_seconds=800) as client:
        assert [model.name for model in client.list_models()] == ["memory"]
        path.write_bytes(evil)
        with pytest.raises(UnauthenticatedError):
            client.list_models()
        path.write_bytes(whole)
        assert [model.name for model in client.list_models()] == ["memory"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_snapshot_of_a_server_without_keys_is_never_loaded(place, tmp_path, level) -> None:
    """Nor is an earlier snapshot of the model in its place."""
    other = Place(tmp_path / "other")
    other.fill(other.bare)
    place.fill(place.config)
    newest = max((place.data / "models" / level).glob("*.snapshot"))
    evil = max((other.data / "models" / level).glob("*.snapshot"))
    newest.write_bytes(evil.read_bytes())
    with pytest.raises(SnapshotError, match="it has no tag"):
        Server(place.config)
    newest.with_name("00000099.snapshot").write_bytes(evil.read_bytes())
    newest.unlink()
    with pytest.raises(SnapshotError, match="it has no tag"):
        Server(place.config)


def test_a_damaged_snapshot_stops_the_start_and_an_earlier_one_is_not_taken_by_itself(copy, capsys) -> None:
    newest = max((copy.data / "models" / "memory").glob("*.snapshot"))
    raw = newest.read_bytes()
    newest.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(SnapshotError, match="a start does not go back by itself"):
        Server(copy.config)
    words = ["restore", str(copy.data), "memory", "--snapshot", "1", "--snapshot-key-file", str(copy.keys)]
    assert main(words) == 0
    assert copy.versions(copy.config)["memory"][0] == 0


def test_a_snapshot_of_another_model_is_refused_under_this_name(copy) -> None:
    models = copy.data / "models"
    newest = max((models / "memory").glob("*.snapshot"))
    newest.write_bytes(max((models / "process").glob("*.snapshot")).read_bytes())
    with pytest.raises(ConfigurationError, match="holds snapshots of model 'process'"):
        Server(copy.config)


def test_an_earlier_valid_snapshot_in_place_of_the_newest_is_reported_as_a_rewind(place) -> None:
    place.fill(place.config)
    state_id = place.versions(place.config)["memory"][1]
    first, newest = sorted((place.data / "models" / "memory").glob("*.snapshot"))
    newest.write_bytes(first.read_bytes())
    version, now = place.versions(place.config)["memory"]
    assert version == 0
    assert now != state_id


def test_the_records_of_an_earlier_stop_put_back_are_not_noticed(place) -> None:
    """What no key prevents: docs/security.md says so."""
    place.fill(place.config)
    saved = {name: (place.data / name).read_bytes() for name in ("run", "manifest")}
    first = place.versions(place.config)  # writes no snapshot: nothing has changed
    assert {version for version, _ in first.values()} == {1}
    place.fill(place.config)
    max((place.data / "models" / "memory").glob("*.snapshot")).unlink()
    for name, raw in saved.items():
        (place.data / name).write_bytes(raw)
    assert place.versions(place.config)["memory"] == first["memory"]


def test_a_deleted_model_that_is_put_back_is_reported_as_a_rewind(place, tmp_path) -> None:
    place.fill(place.config)
    states = place.versions(place.config)
    shutil.copytree(place.data / "models" / "memory", tmp_path / "kept")
    with Server(place.config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        client.delete_model("memory")
    shutil.copytree(tmp_path / "kept", place.data / "models" / "memory")
    version, state_id = place.versions(place.config)["memory"]
    assert version == 1
    assert state_id != states["memory"][1]


def test_an_earlier_list_of_tokens_is_accepted(place, capsys) -> None:
    """What no key prevents: docs/security.md says so."""
    assert place.token("make", "alice", "--pull", "*") == 0
    secret = capsys.readouterr().out.strip()
    earlier = (place.data / "tokens.json").read_bytes()
    assert place.token("revoke", "alice") == 0
    config = replace(place.config, loopback_token="required")
    with Server(config) as server, ParameterClient(server.address, token=secret, timeout_seconds=800) as client:
        with pytest.raises(UnauthenticatedError):
            client.list_models()
        (place.data / "tokens.json").write_bytes(earlier)
        assert client.list_models() == []


def test_without_the_record_of_the_last_run_models_are_not_loaded(copy) -> None:
    """It says which models there are. Without it, a model could vanish, and the folder could pass for an old one."""
    for name in ("run", "manifest"):
        (copy.data / name).unlink()
    (copy.data / "lock").write_bytes(b"")  # as in the first format, which had no records
    with pytest.raises(SnapshotError, match="there is no file 'run'"):
        Server(copy.config)


def test_a_memory_folder_in_the_data_folder_is_refused(place) -> None:
    with pytest.raises(ConfigurationError, match="is in the data folder"):
        Server(replace(place.config, memory_dir=place.data.parent / "nowhere"))


# Beginning, changing and ending the use of keys


def test_old_files_are_admitted_by_a_line_once_and_have_tags_from_then_on(place, caplog) -> None:
    place.fill(place.bare)
    assert place.token("make", "alice", "--pull", "memory", keyed=False) == 0
    states = place.versions(place.bare)
    with pytest.raises(SnapshotError, match="add the line 'unkeyed' at the end of the key file for one start"):
        Server(place.config)
    place.change_lines(lambda lines: [*lines, "unkeyed"])
    assert place.versions(place.config) == states
    assert "the line 'unkeyed' admits files without a tag" in caplog.text
    assert "it has no tag, and is used because" in caplog.text
    place.change_lines(lambda lines: lines[:1])
    assert place.versions(place.config) == states
    place.fill(place.config)
    assert {version for version, _ in place.versions(place.config).values()} == {2}


def test_a_changed_key_is_used_from_one_start_on(place, capsys) -> None:
    place.fill(place.config)
    assert place.token("make", "alice", "--pull", "memory") == 0
    states = place.versions(place.config)
    assert main(["snapshot-key", str(place.keys), "--rotate"]) == 0
    new, old = place.keys.read_text().split()
    assert place.versions(place.config) == states
    place.keys.write_text(new)
    assert place.versions(place.config) == states
    place.keys.write_text(old)
    with pytest.raises(SnapshotError, match=r"its tag is of the key '[0-9a-f]{16}'"):
        Server(place.config)


def test_keys_end_where_the_line_comes_first(place) -> None:
    place.fill(place.config)
    assert place.token("make", "alice", "--pull", "memory") == 0
    states = place.versions(place.config)
    place.change_lines(lambda lines: ["unkeyed", *lines])
    assert place.versions(place.config) == states
    assert place.versions(place.bare) == states


@pytest.mark.parametrize("keyed", [True, False])
def test_a_rewound_model_at_the_level_disk_can_be_rekeyed(place, keyed) -> None:
    """Its journal is begun anew, and what it had before does not stop the next start."""
    place.fill(place.config if keyed else place.bare)
    for journal in (place.data / "models" / "disk").glob("*.journal"):
        moved = journal.with_suffix(".moved")
        shutil.copy(journal, moved)  # another inode: a copy, so the model is rewound
        moved.rename(journal)
    if keyed:
        assert main(["snapshot-key", str(place.keys), "--rotate"]) == 0
    else:
        place.change_lines(lambda lines: [*lines, "unkeyed"])
    states = place.versions(place.config)
    place.change_lines(lambda lines: lines[:1])
    assert place.versions(place.config) == states


def test_models_are_exported_and_imported_with_keys(copy, tmp_path, capsys) -> None:
    out, keyed = str(tmp_path / "m.safetensors"), ["--snapshot-key-file", str(copy.keys)]
    assert main(["export", str(copy.data), "disk", out, *keyed]) == 0
    assert main(["import", str(tmp_path / "new"), "disk", out, *keyed]) == 0
    assert main(["import", str(tmp_path / "new"), "second", out, *keyed]) == 0
    assert main(["import", str(tmp_path / "new"), "third", out]) == 1
    assert "--snapshot-key-file" in capsys.readouterr().err
    config = replace(copy.config, data_dir=tmp_path / "new")
    with Server(config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        assert {model.name for model in client.list_models()} == {"disk", "second"}


def test_the_key_file_is_a_setting_as_all_others(place, monkeypatch, tmp_path, capsys) -> None:
    place.fill(place.config)
    monkeypatch.setenv("NUMBA_ADAM_SNAPSHOT_KEY_FILE", str(place.keys))
    assert main(["verify", str(place.data)]) == 0
    assert "not checked" not in capsys.readouterr().out
    assert main(["restore", str(place.data), "memory"]) == 0
    assert re.search(r"snapshot 2: version 1 of state", capsys.readouterr().out)
