"""The wire contract keeps everything released: compares it with proto/released.binpb, as `make lint` does with buf.

buf comes with the `dev` extra; the first test needs none.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from numba_adam.ps.v1 import error_pb2, model_pb2, parameter_service_pb2, transfer_pb2

NOW = {
    module.DESCRIPTOR.name: module.DESCRIPTOR for module in (error_pb2, model_pb2, parameter_service_pb2, transfer_pb2)
}

BUF = shutil.which("buf", path=str(Path(sys.executable).parent))
BREAKS = {
    "a field's number": (
        "opened the session.\n  string worker_id = 3;",
        "opened the session.\n  string worker_id = 33;",
    ),
    "a field's type": ("The session's epoch.\n  uint64 epoch = 4;", "The session's epoch.\n  string epoch = 4;"),
    "a field that is gone": ("  uint64 base_version = 6;", "  reserved 6;"),
    "a call's kind": ("rpc Pull(PullRequest) returns (stream ", "rpc Pull(PullRequest) returns ("),
    "a call that is gone": ("  rpc GetModel(GetModelRequest) returns (GetModelResponse);\n", ""),
}


def fields(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[object, ...]]:
    """Yield everything that clients rely on: every field, enum value and call, as plain values."""
    for message in file.message_type:
        for field in message.field:
            yield message.name, field.name, field.number, field.type, field.type_name, field.label
    for enum in file.enum_type:
        for value in enum.value:
            yield enum.name, value.name, value.number
    for service in file.service:
        for call in service.method:
            yield (
                service.name,
                call.name,
                call.input_type,
                call.output_type,
                call.client_streaming,
                call.server_streaming,
            )


def test_everything_released_is_still_in_the_contract(root: Path) -> None:
    released = descriptor_pb2.FileDescriptorSet.FromString((root / "proto" / "released.binpb").read_bytes())
    assert sorted(old.name for old in released.file) == sorted(NOW)
    for old in released.file:
        now = descriptor_pb2.FileDescriptorProto()
        NOW[old.name].CopyToProto(now)
        assert set(fields(old)) <= set(fields(now)), old.name


@pytest.mark.skipif(BUF is None, reason="buf comes with the dev extra: make lint installs it")
@pytest.mark.parametrize("what", BREAKS)
def test_buf_fails_on_a_change_that_breaks_clients(root: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(root / "proto", tmp_path / "proto")
    path = tmp_path / "proto" / "numba_adam" / "ps" / "v1" / "parameter_service.proto"
    command = [BUF, "breaking", "--against", "released.binpb"]
    assert subprocess.run(command, cwd=tmp_path / "proto", check=False).returncode == 0
    old, new = BREAKS[what]
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    broken = subprocess.run(command, cwd=tmp_path / "proto", check=False, capture_output=True, text=True)
    assert broken.returncode != 0
    assert "parameter_service.proto" in broken.stdout + broken.stderr
