"""What each kind of attacker of docs/security.md can and cannot do, tried out."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path

import google_crc32c
import grpc
import numpy as np
import pytest
from calls import bearer, requests, status_of
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import UnauthenticatedError
from numba_adam.ps.v1 import parameter_service_pb2 as pb

LONG = 800.0
WEIGHTS = np.ones(3, np.float32)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROLES = ("no token", "pull", "push", "admin", "admin elsewhere")
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def table():
    """Return path -> role -> cell, from the document."""
    lines = re.findall(r"^\| `(/[\w./]+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {path: dict(zip(ROLES, cells.split(" | "), strict=True)) for path, cells in lines}


def reflected(address, metadata):
    """Return the paths of all methods of all services, as the server itself describes them."""

    def ask(channel, **question):
        raw = reflection_pb2.ServerReflectionRequest(**question).SerializeToString()
        (answer,) = channel.stream_stream(REFLECTION)(iter([raw]), metadata=metadata, timeout=LONG)
        return reflection_pb2.ServerReflectionResponse.FromString(answer)

    paths = set()
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        for service in ask(channel, list_services="").list_services_response.service:
            answer = ask(channel, file_containing_symbol=service.name)
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(raw)
                for described in file.service:
                    if f"{file.package}.{described.name}" == service.name:
                        paths |= {f"/{service.name}/{method.name}" for method in described.method}
    return paths


def test_the_table_has_every_method_that_the_server_describes(server, admin):
    assert reflected(server.address, bearer(admin)) == set(table())


def first_message(path, model):
    """Return the first message of a call for a model."""
    name = path.rpartition("/")[2]
    if name in requests(model):
        return requests(model)[name].SerializeToString()
    if name in ("Check", "Watch"):
        return health_pb2.HealthCheckRequest(service="unknown").SerializeToString()
    return b""


@pytest.mark.parametrize("path", sorted(table()))
def test_every_cell_of_the_table_is_true(path, server, admin, make_token, connect):
    connect(admin).create_model("m", {"w": WEIGHTS})
    connect(admin).create_model("other", {"w": WEIGHTS})
    tokens = {scope: bearer(make_token(f"of-{scope}", f"--{scope}", "m")) for scope in ("pull", "push", "admin")}
    tokens |= {"no token": (), "admin elsewhere": bearer(make_token("elsewhere", "--admin", "other"))}
    name = path.rpartition("/")[2]
    for role, cell in table()[path].items():
        if name == "Watch" and role != "no token":
            continue  # it has no end; the test of health checks calls it
        code = status_of(server.address, path, tokens[role], first_message(path, "m"))
        assert (code in REFUSED) == (cell == "no"), (role, code)
        assert cell in ("yes", "no", "own models")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /numba_adam.ps.v1.ParameterService/DeleteModel HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example"
        b"\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\n\x00\x00\x00\x00\x03\n\x01m",
        b"OPTIONS /numba_adam.ps.v1.ParameterService/DeleteModel HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\n"
        b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: rebound.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: rebound.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["post", "preflight", "upgrade", "websocket"],
)
def test_what_a_browser_sends_over_http_1_has_no_effect_and_no_answer_that_a_page_can_read(request_bytes, make_server):
    server = make_server()
    host, _, port = server.address.rpartition(":")
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        client.create_model("m", {"w": WEIGHTS})
        with socket.create_connection((host, int(port)), LONG) as page:
            page.sendall(request_bytes)
            page.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while part := page.recv(4096):
                    answer += part
            except ConnectionResetError:
                pass
        assert not answer.startswith(b"HTTP/1.1 2")
        assert b"access-control-allow" not in answer.lower()
        assert b"101 " not in answer
        assert [info.name for info in client.list_models()] == ["m"]


@pytest.mark.parametrize(
    "header", [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
)
def test_a_call_that_a_browser_marks_as_a_pages_is_refused_without_tokens(header, make_server):
    """Over HTTP/2 without TLS, which browsers do not speak; something between could."""
    server = make_server()
    with ParameterClient(server.address, timeout_seconds=LONG) as client:
        client.create_model("m", {"w": WEIGHTS})
        for name, request in requests("m").items():
            path = f"/numba_adam.ps.v1.ParameterService/{name}"
            code = status_of(server.address, path, (header,), request.SerializeToString())
            assert code is grpc.StatusCode.PERMISSION_DENIED
        assert [info.name for info in client.list_models()] == ["m"]


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer" + " " * 100),),
        (("authorization", "Bearer nat_" + "A" * 6000),),
        (("authorization", "bearer,Bearer x"),),
        (("authorization-bin", bytes(range(256))),),
        tuple(("authorization", f"Bearer {number}") for number in range(50)),
        (("proxy-authorization", "Bearer x"), ("x-authorization", "Bearer x"), ("cookie", "token=x")),
        tuple((f"key{number}", "x" * 60) for number in range(60)),
    ],
    ids=range(9),
)
def test_strange_metadata_opens_nothing_and_harms_nothing(metadata, server, admin, connect, caplog):
    path = "/numba_adam.ps.v1.ParameterService/ListModels"
    with caplog.at_level(logging.ERROR):
        code = status_of(server.address, path, metadata, b"")
    assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert connect(admin).list_models() == []
    assert caplog.records == []


def messages_of_a_push(state_id, between):
    """Yield a push of three ones; call `between` after its header."""
    payload = WEIGHTS.tobytes()
    header = pb.PushHeader(
        model="m", state_id=state_id, worker_id="w", epoch=1, sequence=1, dtype=1, total_bytes=len(payload),
        tensors=[{"name": "w", "shape": [3]}], checksum_kind=2,
    )  # fmt: skip
    yield pb.PushRequest(header=header).SerializeToString()
    between()
    yield pb.PushRequest(chunk={"offset": 0, "data": payload}).SerializeToString()
    yield pb.PushRequest(trailer={"checksum": google_crc32c.value(payload)}).SerializeToString()


def test_a_push_whose_token_is_revoked_meanwhile_still_ends_and_the_next_is_refused(
    server, admin, make_token, revoke, connect
):
    connect(admin).create_model("m", {"w": WEIGHTS})
    token = make_token("alice", "--push", "m")
    service = "/numba_adam.ps.v1.ParameterService/"
    with grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        opening = pb.OpenSessionRequest(model="m", worker_id="w", nonce="n").SerializeToString()
        raw = channel.unary_unary(service + "OpenSession")(opening, metadata=bearer(token), timeout=LONG)
        opened = pb.OpenSessionResponse.FromString(raw)
        assert opened.epoch == 1
        messages = messages_of_a_push(opened.state.state_id, lambda: revoke("alice"))
        call = channel.stream_unary(service + "Push")
        call = call.future(messages, metadata=bearer(token), timeout=LONG)
        code = call.code()  # refused, if it was revoked before the server had read the header
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        assert status_of(server.address, service + "ListModels", bearer(token), b"") is grpc.StatusCode.UNAUTHENTICATED
    assert connect(admin).status().models[0].model.version == int(code is grpc.StatusCode.OK)


def test_no_command_takes_a_token_as_an_argument(capsys):
    """Every user of the machine can read the arguments of a process."""
    for command in ("status", "snapshot", "serve"):
        with pytest.raises(SystemExit):
            main([command, "--token", "nat_secret"])
        assert "--token" in capsys.readouterr().err


def test_an_error_for_a_wrong_token_does_not_repeat_it(server, admin):
    secret = "nat_" + "B" * 43
    with ParameterClient(server.address, token=secret, tls=False, timeout_seconds=LONG) as client:
        with pytest.raises(UnauthenticatedError) as caught:
            client.list_models()
        assert secret not in str(caught.value)
        assert secret not in repr(client)
