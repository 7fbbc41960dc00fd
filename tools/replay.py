"""Replay golden transcripts against a parameter server, and compare its answers.

    python -m tools.replay 127.0.0.1:50051
    python -m tools.replay 127.0.0.1:50051 --restart ./kill_and_start.sh tests/transcripts/rewind.json
    python -m tools.replay 127.0.0.1:50051 --stop-and-start ./stop_and_start.sh tests/transcripts/restart.json

A transcript is a list of exchanges with a server: the messages of a call, its answers and its status.
tests/transcripts/README.md describes the files, and what is not compared. A server that asks for a token gets that of
NUMBA_ADAM_TOKEN, or the one that it has written for its own user.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import xxhash
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import ErrorDetail

TRANSCRIPTS = Path(__file__).resolve().parent.parent / "tests" / "transcripts"
METHODS = pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name
CHECKSUMS: dict[str, Callable[[bytes], int]] = {
    "CHECKSUM_KIND_XXH3_64": xxhash.xxh3_64_intdigest,
    "CHECKSUM_KIND_CRC32C": google_crc32c.value,
}
FORMATS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<f4"}
RELATIVE_ERROR = 1e-6  # float32 has 24 bits; a server may round the last of them in another way
ANY = "*"
MISSING = {
    "kill": "it kills the server, which needs --restart",
    "stop": "it stops the server, which needs --stop-and-start",
}

Json = Any
Exchange = dict[str, Json]
Restarts = Mapping[str, Callable[[], object]]


class MismatchError(Exception):
    """The server's answer differs from the transcript."""


# --- variables and values -----------------------------------------------------------------------------------------


def is_variable(value: Json) -> bool:
    """Return whether a value of a transcript is a variable, such as "$state"."""
    return isinstance(value, str) and value.startswith("$")


def is_payload(value: Json) -> bool:
    """Return whether a value of a transcript is bytes of an array: {"float32": [...], "repeat": 3}."""
    return isinstance(value, dict) and not value.keys().isdisjoint(FORMATS)


def payload_of(value: dict[str, Json]) -> bytes:
    """Return the bytes of {"float32": [...], "repeat": 3}. Numbers may be the strings "NaN" and "Infinity"."""
    (name,) = value.keys() & FORMATS.keys()
    numbers = np.array([float(number) for number in value[name]], FORMATS[name])
    if name == "bfloat16":  # the upper half of a float32; the transcripts have no numbers that need rounding
        numbers = (numbers.view("<u4") >> 16).astype("<u2")
    return np.tile(numbers, value.get("repeat", 1)).tobytes()


def filled(value: Json, variables: dict[str, Json]) -> Json:
    """Return part of a request with its variables' values. A variable without a value gets a random id."""
    if is_variable(value):
        return variables.setdefault(value, secrets.token_hex(16))
    if is_payload(value):
        return base64.b64encode(payload_of(value)).decode()
    if isinstance(value, dict):
        return {key: filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, variables) for inner in value]
    return value


def is_default(value: Json) -> bool:
    """Return whether protobuf's JSON omits a field of this value."""
    return value in (0, "0", "", False) or value == []


def compare(where: str, expected: Json, actual: Json, variables: dict[str, Json]) -> None:
    """Compare part of an answer with the transcript. A variable without a value gets the server's.

    Raises:
        MismatchError: they differ.
    """
    if expected == ANY:
        return
    if is_variable(expected):
        expected = variables.setdefault(expected, actual)
    if is_payload(expected):
        compare_payloads(where, payload_of(expected), actual)
    elif isinstance(expected, dict) and isinstance(actual, dict):
        wanted = {key: inner for key, inner in expected.items() if not is_default(inner)}
        for key in wanted.keys() | actual.keys():
            compare(f"{where}.{key}", wanted.get(key), actual.get(key), variables)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for index, (inner, found) in enumerate(zip(expected, actual, strict=True)):
            compare(f"{where}[{index}]", inner, found, variables)
    elif expected != actual:
        raise MismatchError(f"{where}: expected {shown(expected)}, got {shown(actual)}")


def compare_payloads(where: str, expected: bytes, actual: Json) -> None:
    """Compare arrays, except for their last bits."""
    if not isinstance(actual, bytes) or len(actual) != len(expected):
        length = f"{len(actual)} bytes" if isinstance(actual, bytes) else "none"
        raise MismatchError(f"{where}: expected a payload of {len(expected)} bytes, got {length}")
    wanted, found = np.frombuffer(expected, "<f4"), np.frombuffer(actual, "<f4")
    (wrong,) = np.nonzero(~np.isclose(found, wanted, rtol=RELATIVE_ERROR, atol=0))
    if len(wrong):
        place = wrong[0]
        raise MismatchError(f"{where}: expected {wanted[place]} at element {place}, got {found[place]}")


def shown(value: Json) -> str:
    """Return a value as JSON for a message; None means that the field is absent."""
    return "nothing" if value is None else json.dumps(value, default=lambda _: "a payload")


# --- calls --------------------------------------------------------------------------------------------------------


def token_of(address: str) -> str | None:
    """Return the token for a server: that of the environment, or that of the server's own user."""
    if token := os.environ.get("NUMBA_ADAM_TOKEN"):
        return token
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "numba-adam", "loopback")
    path = folder / f"{os.uname().nodename}-{address.rpartition(':')[2]}.token"
    return path.read_text().strip() if path.exists() else None


def ask(
    channel: grpc.Channel,
    exchange: Exchange,
    variables: dict[str, Json],
    timeout_seconds: float,
    token: str | None = None,
) -> Exchange:
    """Send the messages of an exchange. Return the answers, the status and the detail, as they are in a transcript."""
    method = METHODS[exchange["call"]]
    requests = [
        ParseDict(filled(request, variables), GetMessageClass(method.input_type)()) for request in exchange["requests"]
    ]
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    call = channel.stream_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )(iter(requests), timeout=timeout_seconds, wait_for_ready=True, metadata=metadata)
    answers: list[Message] = []
    result: Exchange = {"status": "OK"}
    try:
        answers.extend(call)
    except grpc.RpcError:
        result = {"status": call.code().name, "detail": detail_of(call)}
        if not call.details():
            raise MismatchError("an error without a message for people") from None
    return {"answers": list(assembled(answers)), **result}


def ask_for_models(
    channel: grpc.Channel, exchange: Exchange, variables: dict[str, Json], timeout_seconds: float, token: str | None
) -> Exchange:
    """Ask for all pages of a list of models. Return them as one answer, with the one model that the exchange names."""
    wanted = filled(exchange["models"], variables)
    (request,) = exchange["requests"]
    found: list[Json] = []
    after = ""
    while True:
        page = ask(
            channel, {**exchange, "requests": [{**request, "page_token": after}]}, variables, timeout_seconds, token
        )
        if page["status"] != "OK":
            return page
        models = page["answers"][0].pop("models", [])
        if 0 < request.get("page_size", 0) < len(models):
            raise MismatchError(f"a page of {len(models)} models, asked for {request['page_size']}")
        found += [each for each in models if each.get("model", each)["spec"]["name"] == wanted]
        after = page["answers"][0].pop("next_page_token", "")
        if not after:
            return {**page, "answers": [{**page["answers"][0], **({"models": found} if found else {})}]}


def detail_of(call: grpc.Call) -> Json:
    """Return the ErrorDetail of a failed call; None if it has none."""
    for key, value in call.trailing_metadata() or ():
        if key == "numba-adam-error-bin" and isinstance(value, bytes):
            return MessageToDict(ErrorDetail.FromString(value), preserving_proto_field_name=True)
    return None


def assembled(answers: list[Message]) -> Iterator[Json]:
    """Yield answers as JSON, with one {"payload": bytes} for the chunks and the trailer of a transfer.

    Raises:
        MismatchError: the transfer is incomplete, out of order, or does not match its checksum.
    """
    header: Any = None
    payload = b""
    for answer in answers:
        part = answer.WhichOneof("part") if "part" in answer.DESCRIPTOR.oneofs_by_name else ""
        message: Any = answer
        if part == "chunk":
            if header is None or message.chunk.offset != len(payload) or not message.chunk.data:
                raise MismatchError(f"a chunk at offset {message.chunk.offset} after {len(payload)} bytes")
            payload += message.chunk.data
        elif part == "trailer":
            check_transfer(header, payload, message.trailer.checksum)
            yield {"payload": payload}
            header = None
        else:
            header = message.header if part == "header" else header
            yield MessageToDict(answer, preserving_proto_field_name=True)
    if header is not None:
        raise MismatchError("a transfer without a trailer")


def check_transfer(header: Any, payload: bytes, checksum: int) -> None:
    """Check a received transfer against its header and trailer."""
    if header is None:
        raise MismatchError("a trailer without a header")
    if header.total_bytes != len(payload):
        raise MismatchError(f"the header announces {header.total_bytes} bytes, and the chunks have {len(payload)}")
    kind = header.DESCRIPTOR.fields_by_name["checksum_kind"].enum_type.values_by_number[header.checksum_kind].name
    if payload and CHECKSUMS[kind](payload) != checksum:
        raise MismatchError(f"the payload does not match its checksum, of kind {kind}")


# --- transcripts --------------------------------------------------------------------------------------------------


def replay(
    address: str,
    transcript: Json,
    restarts: Mapping[str, Callable[[], object]] | None = None,
    timeout_seconds: float = 60,
) -> int:
    """Replay one transcript, and delete the model that it created. Return the number of exchanges.

    `restarts` are what restarts the server after a "kill" and after a "stop".

    Raises:
        MismatchError: an answer differs.
    """
    variables: dict[str, Json] = {}
    with grpc.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 1000)]) as channel:
        try:
            for number, exchange in enumerate(transcript["exchanges"], 1):
                if "restart" in exchange:
                    assert restarts is not None
                    restarts[exchange["restart"]]()
                    continue
                try:
                    asked = ask_for_models if "models" in exchange else ask
                    actual = asked(channel, exchange, variables, timeout_seconds, token_of(address))
                    expected = {"answers": [], "detail": None, **exchange}
                    for key in ("status", "detail", "answers"):
                        compare(key, expected[key], actual.get(key), variables)
                except MismatchError as mismatch:
                    raise MismatchError(f"exchange {number} ({exchange['what']}): {mismatch}") from None
        finally:
            delete(channel, variables.get("$model", ""), timeout_seconds, token_of(address))
    return len(transcript["exchanges"])


def delete(channel: grpc.Channel, model: str, timeout_seconds: float, token: str | None) -> None:
    """Delete a model, if it exists."""
    named: Exchange = {"call": "GetModel", "requests": [{"model": model}]}
    found = ask(channel, named, {}, timeout_seconds, token)
    if found["status"] == "OK":
        state_id = found["answers"][0]["model"]["state"]["state_id"]
        ask(
            channel,
            {"call": "DeleteModel", "requests": [{"model": model, "state_id": state_id}]},
            {},
            timeout_seconds,
            token,
        )


def restarts_of(transcript: Json) -> set[str]:
    """Return how a transcript restarts the server: "kill", "stop"."""
    return {exchange["restart"] for exchange in transcript["exchanges"] if "restart" in exchange}


def main(words: list[str] | None = None) -> int:
    """Replay the files that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tools.replay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="transcripts; default: all")
    parser.add_argument(
        "--restart", metavar="COMMAND", help="kills the server with SIGKILL, and returns when it serves again"
    )
    parser.add_argument(
        "--stop-and-start", metavar="COMMAND", help="stops the server with SIGTERM, and returns when it serves again"
    )
    parser.add_argument("--timeout-seconds", type=float, default=60.0, help="of a call (default: 60)")
    options = parser.parse_args(words)

    def run(command: str) -> Callable[[], object]:
        return partial(subprocess.run, command, shell=True, check=True)

    restarts = {
        kind: run(command) for kind, command in (("kill", options.restart), ("stop", options.stop_and_start)) if command
    }
    failed = 0
    for path in options.files or sorted(TRANSCRIPTS.glob("*.json")):
        transcript = json.loads(path.read_text())
        missing = restarts_of(transcript) - restarts.keys()
        if missing:
            print(f"skipped  {path.name}: {MISSING[min(missing)]}")
            continue
        try:
            count = replay(options.address, transcript, restarts, options.timeout_seconds)
        except MismatchError as mismatch:
            failed += 1
            print(f"FAILED   {path.name}: {mismatch}")
        else:
            print(f"ok       {path.name}: {count} exchanges")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
