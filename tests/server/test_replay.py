"""The golden transcripts of tests/transcripts: a real server gives these answers, and the checker notices others."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import pytest

from numba_adam.ps.errors import DETAIL_KEY
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import REASON_SEQUENCE_REUSED, ErrorDetail

ROOT = Path(__file__).resolve().parents[2]
CHECKER = runpy.run_path(str(ROOT / "tools" / "replay.py"))
OPENINGS = itertools.count(1)
FILES = sorted((ROOT / "tests" / "transcripts").glob("*.json"))


def transcript(name: str) -> Any:
    return json.loads((ROOT / "tests" / "transcripts" / f"{name}.json").read_text())


def run_checker(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.replay", *words, "--timeout-seconds", "800"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=880)


@pytest.mark.parametrize("loopback_token", ["off", "required"])
def test_a_server_answers_as_in_every_transcript_through_its_kill_and_its_stop(
    loopback_token, processes, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.delenv("NUMBA_ADAM_TOKEN", raising=False)
    quiet = {"snapshot_interval_seconds": 0, "snapshot_every_pushes": 0, "loopback_token": loopback_token}
    first = processes(tmp_path / "data", **quiet)
    running = [first]

    def restart(end: str) -> tuple[str, threading.Thread]:  # when the checker's command says so
        asked, done = tmp_path / f"{end} asked", tmp_path / f"{end} done"
        os.mkfifo(asked)
        os.mkfifo(done)

        def act() -> None:
            asked.read_text()
            getattr(running[-1], end)()
            running.append(processes(tmp_path / "data", listen=first.address, **quiet))
            done.write_text("")

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        return f"echo > '{asked}'; cat '{done}'", thread

    (kill, killing), (stop, stopping) = restart("kill"), restart("stop")
    run = run_checker(first.address, "--restart", kill, "--stop-and-start", stop)
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line.split(":")[0].split()[-1] for line in run.stdout.splitlines()] == [path.name for path in FILES]
    assert "skipped" not in run.stdout
    killing.join(800)
    stopping.join(800)


def test_without_a_command_to_restart_the_rest_is_replayed_and_nothing_is_left_behind(server, peer) -> None:
    run = run_checker(server.address)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped  rewind.json: it kills the server, which needs --restart" in run.stdout
    assert "skipped  restart.json: it stops the server, which needs --stop-and-start" in run.stdout
    assert len([line for line in run.stdout.splitlines() if line.startswith("ok ")]) == len(FILES) - 2
    assert list(peer.stub.ListModels(pb.ListModelsRequest()).models) == []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value in an answer that the server does not choose."""
    if isinstance(value, dict) or (isinstance(value, list) and value):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    elif value != "*" and not str(value).startswith("$"):
        yield path


def altered(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return str(int(value) + 1) if value.isdigit() else "DTYPE_FLOAT64" if value == "DTYPE_FLOAT32" else f"{value}x"
    return value * 1.00001 + 1e-9


@pytest.mark.parametrize("name", ["create", "push", "delete", "status"])
def test_a_transcript_with_any_value_altered_fails(server, name) -> None:
    """So no value in the answers goes unchecked."""
    replay, mismatch = CHECKER["replay"], CHECKER["MismatchError"]
    original = transcript(name)
    expected = [
        (number, key, path)
        for number, exchange in enumerate(original["exchanges"])
        for key in ("status", "detail", "answers")
        for path in places(exchange.get(key), (key,))
        if key in exchange
    ]
    assert len(expected) > 50
    missed = []
    for number, _, path in expected[::7]:
        changed = copy.deepcopy(original)
        inner = changed["exchanges"][number]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = altered(inner[path[-1]])
        found = "no mismatch"
        try:
            replay(server.address, changed, timeout_seconds=800)
        except mismatch as error:
            found = str(error)
        if not found.startswith(f"exchange {number + 1} ("):
            missed.append((number + 1, path, found))
    assert missed == []


class BreakingRelay:
    """A gRPC relay that makes a good server a bad one: it changes the answers of each call, or its error."""

    def __init__(self, target: str, breaks: Callable[..., Any]) -> None:
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._breaks = breaks
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name[details.method.rsplit("/", 1)[1]]
        response = getattr(pb, method.output_type.name)

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call = self._channel.stream_stream(details.method, None, response.FromString)(requests)
            answers: list[Any] = []
            detail = None
            try:
                answers.extend(call)
            except grpc.RpcError:
                found = dict(call.trailing_metadata())
                detail = ErrorDetail.FromString(found[DETAIL_KEY])
            answers, changed = self._breaks(method.name, answers, detail)
            if detail is not None and not answers:
                if changed is not None:
                    context.set_trailing_metadata([(DETAIL_KEY, changed.SerializeToString())])
                context.abort(call.code(), call.details())
            for answer in answers:
                yield answer.SerializeToString()

        return grpc.stream_stream_rpc_method_handler(relay)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def applies_a_used_number_again(method, answers, detail):
    """Other content under a used number is acknowledged."""
    if method == "Push" and detail is not None and detail.reason == REASON_SEQUENCE_REUSED:
        return [pb.PushResponse(ack=pb.PushAck(version=1, state=detail.state, duplicate=True))], None
    return answers, detail


def hides_duplicates(method, answers, detail):
    """A retry is not marked."""
    for answer in answers if method == "Push" else ():
        answer.ack.duplicate = False
    return answers, detail


def hides_staleness(method, answers, detail):
    for answer in answers if method == "Push" else ():
        answer.ack.staleness = 0
    return answers, detail


def gives_no_reason(method, answers, detail):
    """An error has no ErrorDetail."""
    return answers, None


def keeps_no_number_of_a_refusal(method, answers, detail):
    if detail is not None:
        detail.sequence_recorded = False
    return answers, detail


def damages_pulls(method, answers, detail):
    """A pull has one bit changed."""
    if method == "Pull" and len(answers) > 2:
        data = bytearray(answers[1].chunk.data)
        data[3] ^= 1
        answers[1].chunk.data = bytes(data)
    return answers, detail


def pulls_other_values(method, answers, detail):
    """A pull has one wrong value, and the checksum of it."""
    if method == "Pull" and len(answers) == 3:
        values = np.frombuffer(answers[1].chunk.data, "<f4").copy()
        values[4] *= 1.0001
        answers[1].chunk.data = values.tobytes()
        answers[2].trailer.checksum = google_crc32c.value(values.tobytes())
    return answers, detail


def leaves_out_a_chunk(method, answers, detail):
    if method == "Pull" and len(answers) > 3:
        del answers[2]
    return answers, detail


def opens_again_for_a_nonce(method, answers, detail):
    """Each opening has a new epoch."""
    if method == "OpenSession" and answers:
        answers[0].epoch += next(OPENINGS)
    return answers, detail


def forgets_a_rejection(method, answers, detail):
    for answer in answers if method == "GetServerStatus" else ():
        for each in answer.models:
            each.pushes_rejected = 0
    return answers, detail


def lists_a_deleted_model(method, answers, detail):
    """A list of models is older than the call."""
    for answer in answers if method == "ListModels" else ():
        LISTED.extend(answer.models)
        answer.models.extend(each for each in LISTED[:1] if each not in answer.models)
    return answers, detail


def makes_larger_pages(method, answers, detail):
    for answer in answers if method == "ListModels" else ():
        answer.models.extend(list(answer.models))
    return answers, detail


LISTED: list[Any] = []


@pytest.mark.parametrize(
    ("breaks", "name", "what"),
    [
        (applies_a_used_number_again, "push", "another gradient under the same number"),
        (hides_duplicates, "push", "a retry of the push gets the same answer"),
        (hides_staleness, "push", "a stale push is applied, and its staleness is reported"),
        (gives_no_reason, "delete", "a deletion of another state"),
        (keeps_no_number_of_a_refusal, "refusals", "a gradient that is not a number"),
        (damages_pulls, "pull", "with CRC-32C"),
        (pulls_other_values, "create", "so are its values"),
        (leaves_out_a_chunk, "chunks", "its values"),
        (forgets_a_rejection, "status", "one push applied, one repeated, one rejected; one worker"),
        (lists_a_deleted_model, "status", "its state has moved"),
        (makes_larger_pages, "status", "the models of the server have it"),
        (opens_again_for_a_nonce, "sessions", "the same nonce: the same epoch"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_server_that_breaks_the_protocol_fails(server, breaks, name, what) -> None:
    relay = BreakingRelay(server.address, breaks)
    with contextlib.closing(relay), pytest.raises(CHECKER["MismatchError"]) as caught:
        CHECKER["replay"](relay.address, transcript(name), timeout_seconds=800)
    assert f"({what})" in str(caught.value)


def test_the_transcripts_are_described(server) -> None:
    described = (ROOT / "tests" / "transcripts" / "README.md").read_text()
    assert [path.name for path in FILES if f"| `{path.name}` |" not in described] == []
    called = {exchange.get("call") for path in FILES for exchange in json.loads(path.read_text())["exchanges"]}
    assert called - {None} == set(CHECKER["METHODS"])
