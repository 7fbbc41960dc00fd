"""Access tokens: every method of every service asks for one, and it allows what it says, until it is revoked."""

from __future__ import annotations

import json
import logging
import stat
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from calls import METHODS, SERVICE, bearer, requests, status_of
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import AccessDeniedError, ConfigurationError, UnauthenticatedError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.storage import token_file
from numba_adam.server.transport.access import NEEDS

LONG = 800.0
WEIGHTS = np.ones(3, np.float32)


def test_every_method_of_the_service_has_its_need():
    assert set(NEEDS) == {method.name for method in SERVICE.methods}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_every_service_asks_for_a_valid_token(method, server, admin):
    wrong = [
        (),
        bearer(admin[:-1]),
        bearer(admin + "A"),
        bearer(""),
        bearer("x" * 5000),
        (("authorization", admin),),
        (("authorization", f"Basic {admin}"),),
        (("authorization", "Bearer wrong"), ("authorization", f"Bearer {admin}")),
        (("authorization-bin", f"Bearer {admin}".encode()),),
    ]
    for metadata in wrong:
        assert status_of(server.address, method, metadata) is grpc.StatusCode.UNAUTHENTICATED, metadata


def test_health_and_reflection_answer_with_any_token(server, make_token):
    metadata = bearer(make_token("probe", "--pull", "none"))
    check = health_pb2.HealthCheckRequest().SerializeToString()
    assert status_of(server.address, "/grpc.health.v1.Health/Check", metadata, check) is grpc.StatusCode.OK
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert status_of(server.address, path, metadata, listing) is grpc.StatusCode.OK


ALLOWED = {  # by the design: each scope includes those before it
    "pull": {"GetModel", "Pull"},
    "push": {"GetModel", "Pull", "OpenSession", "Push", "PushPull", "AwaitPush", "Heartbeat"},
    "admin": {
        "GetModel",
        "Pull",
        "OpenSession",
        "Push",
        "PushPull",
        "AwaitPush",
        "Heartbeat",
        "ListWorkers",
        "EvictWorker",
        "CreateModel",
        "UpdateModel",
        "DeleteModel",
        "Snapshot",
    },
}


@pytest.mark.parametrize("scope", ALLOWED)
def test_a_token_allows_what_its_scope_says_for_its_model_only(scope, server, make_token, connect, admin):
    clients = connect(admin)
    for model in ("own", "other"):
        clients.create_model(model, {"w": WEIGHTS})
    metadata = bearer(make_token("someone", f"--{scope}", "own"))
    for model in ("own", "other", "none", "*", ""):
        for method, request in requests(model).items():
            code = status_of(server.address, f"/{SERVICE.full_name}/{method}", metadata, request.SerializeToString())
            is_denied = code is grpc.StatusCode.PERMISSION_DENIED
            assert is_denied == (model != "own" or method not in ALLOWED[scope]), (method, model, code)
    assert clients.open_model("other").version == 0


def test_a_scope_for_one_model_wins_over_the_one_for_all(server, make_token, connect, admin):
    for model in ("a", "b"):
        connect(admin).create_model(model, {"w": WEIGHTS})
    client = connect(make_token("someone", "--push", "*", "--pull", "a"))
    assert client.open_model("b").push({"w": WEIGHTS}).version == 1
    with pytest.raises(AccessDeniedError, match=r"does not allow OpenSession for the model 'a'.* 'push'"):
        client.open_model("a").push({"w": WEIGHTS})


def test_a_header_that_is_no_header_is_refused(server, make_token):
    metadata = bearer(make_token("someone", "--pull", "own"))
    for raw in (b"", pb.PushRequest().SerializeToString(), b"\xff\xff"):
        code = status_of(server.address, f"/{SERVICE.full_name}/Push", metadata, raw)
        assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)


def test_lists_show_only_the_models_that_a_token_may_pull(make_token, connect, admin):
    for model in ("a", "b", "c"):
        connect(admin).create_model(model, {"w": WEIGHTS})
    client = connect(make_token("someone", "--pull", "a", "--push", "c"))
    assert [info.name for info in client.list_models()] == ["a", "c"]
    assert [status.model.name for status in client.status().models] == ["a", "c"]
    assert [info.name for info in connect(admin).list_models()] == ["a", "b", "c"]
    with pytest.raises(AccessDeniedError, match="Snapshot for all models"):
        client.snapshot()


def test_a_worker_id_belongs_to_the_token_that_opened_it(make_token, connect, admin):
    """Without tokens, the second worker would fence the first."""
    connect(admin).create_model("m", {"w": WEIGHTS})
    first = connect(make_token("alice", "--push", "m"), "w0").open_model("m")
    second = connect(make_token("bob", "--push", "m"), "w0").open_model("m")
    assert first.push({"w": WEIGHTS}).version == 1
    assert second.push({"w": WEIGHTS}).version == 2
    assert first.push({"w": WEIGHTS}).version == 3
    assert second.push_pull({"w": WEIGHTS})["w"].shape == (3,)
    assert first.push({"w": WEIGHTS}).version == 5


def test_a_renewed_token_continues_the_sessions_of_its_name(make_token, connect, server, admin):
    connect(admin).create_model("m", {"w": WEIGHTS})
    words = ("alice", "--push", "m")
    metadata = bearer(make_token(*words))
    opening = pb.OpenSessionRequest(model="m", worker_id="w0").SerializeToString()
    path = f"/{SERVICE.full_name}/OpenSession"
    assert status_of(server.address, path, metadata, opening) is grpc.StatusCode.OK
    renewed = bearer(make_token(*words, "--replace"))
    assert status_of(server.address, path, metadata, opening) is grpc.StatusCode.UNAUTHENTICATED
    assert status_of(server.address, path, renewed, opening) is grpc.StatusCode.OK
    assert connect(admin).status().models[0].workers == 1


def test_a_revoked_token_is_refused_at_once(make_token, connect, admin, revoke):
    connect(admin).create_model("m", {"w": WEIGHTS})
    model = connect(make_token("alice", "--push", "m")).open_model("m")
    assert model.push({"w": WEIGHTS}).version == 1
    assert revoke("alice") == 0
    with pytest.raises(UnauthenticatedError, match="unknown, or it was revoked"):
        model.push({"w": WEIGHTS})
    assert connect(admin).open_model("m").version == 1
    assert revoke("alice") == 1


def test_an_expired_token_is_refused(make_token, connect, admin, tmp_path):
    token = make_token("alice", "--pull", "*", "--days", "1")
    assert connect(token).list_models() == []
    path = tmp_path / "data" / "tokens.json"
    values = json.loads(path.read_text())
    values["tokens"][-1]["expires"] = "2020-01-02T03:04:05+00:00"
    del values["xxh3_64"]
    path.write_text(json.dumps(values))
    with pytest.raises(UnauthenticatedError, match="token of 'alice' expired at 2020-01-02 03:04 UTC"):
        connect(token).list_models()
    assert connect(admin).list_models() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "?",
        "{}",
        '{"format": 1, "tokens": [{}]}',
        '{"format": 2, "tokens": []}',
        "[]",
        '{"format": 1, "tokens": [], "xxh3_64": "0"}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:40],
)
def test_with_a_damaged_file_no_token_is_valid_until_it_is_repaired(content, connect, admin, tmp_path, caplog):
    path = tmp_path / "data" / "tokens.json"
    before = path.read_text()
    assert connect(admin).list_models() == []
    path.write_text(content)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            with pytest.raises(UnauthenticatedError):
                connect(admin).list_models()
    assert len(caplog.records) == 1
    assert main(["token", "list", "--data-dir", str(path.parent)]) == 1
    path.write_text(before)
    assert connect(admin).list_models() == []


def test_each_of_many_tokens_opens_its_own_model_only(connect, admin, tmp_path):
    client = connect(admin)
    for number in range(3):
        client.create_model(f"m{number}", {"w": WEIGHTS})
    secrets, folder = [token_file.new_secret() for _ in range(300)], tmp_path / "data"
    ends = datetime.now(UTC) + timedelta(days=1)
    tokens = [
        token_file.Token(f"t{number}", token_file.digest_of(secret), ends, {f"m{number % 3}": token_file.Scope.PULL})
        for number, secret in enumerate(secrets)
    ]
    with token_file.changing(folder):
        token_file.write(folder, [*token_file.read(folder), *tokens])
    for number in (0, 1, 149, 299):
        assert [model.name for model in connect(secrets[number]).list_models()] == [f"m{number % 3}"]
    assert len(connect(admin).list_models()) == 3


def test_a_file_that_others_may_write_to_makes_no_token_valid(connect, admin, tmp_path):
    assert connect(admin).list_models() == []
    (tmp_path / "data" / "tokens.json").chmod(0o666)
    with pytest.raises(UnauthenticatedError):
        connect(admin).list_models()


def test_a_token_is_nowhere_but_in_the_output_of_make(make_token, connect, tmp_path, capsys, caplog):
    token = make_token("alice", "--pull", "m", "--push", "n")
    with caplog.at_level(logging.DEBUG):
        client = connect(token)
        client.list_models()
        with pytest.raises(AccessDeniedError) as caught:
            client.snapshot("m")
    assert main(["token", "list", "--data-dir", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr()
    assert "alice  until 20" in shown.out
    assert "pull:m push:n" in shown.out
    told = [shown.out, shown.err, caplog.text, str(caught.value), repr(client)]
    kept = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not any(token in text for text in told)
    assert not any(token.encode() in raw for raw in kept)
    assert stat.S_IMODE((tmp_path / "data" / "tokens.json").stat().st_mode) == 0o600


def test_tokens_are_long_random_and_different(make_token):
    made = {make_token("a", "--pull", "m", "--replace") for _ in range(5)}
    assert len(made) == 5
    assert all(len(token) >= 43 for token in made)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a",), "none is given"),
        (("a", "--pull", "../m"), "m"),
        (("a/b", "--pull", "m"), "NAME='a/b'"),
        (("a" * 33, "--pull", "m"), "expected 1 to 32"),
        (("admin", "--pull", "m"), "there is a token of this name; pass --replace"),
    ],
)
def test_a_token_that_cannot_be_made_changes_nothing(words, message, admin, tmp_path, capsys):
    before = (tmp_path / "data" / "tokens.json").read_bytes()
    assert main(["token", "make", *words, "--data-dir", str(tmp_path / "data")]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "data" / "tokens.json").read_bytes() == before


def test_the_environment_has_the_token_for_clients_and_commands(server, admin, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    assert main(["status", "--server", server.address]) == 1
    monkeypatch.setenv("NUMBA_ADAM_TOKEN", admin)
    assert main(["status", "--server", server.address]) == 0


def test_without_tls_a_token_is_sent_to_this_machine_only(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"on its way to trainer\.example\.org:1 without TLS") as caught:
        ParameterClient("trainer.example.org:1", token="secret")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("NUMBA_ADAM_TOKEN", "secret")
    client = ParameterClient("trainer.example.org:1")
    assert client._connection._find_token() is None
    client.close()


@pytest.mark.parametrize("token", ["", "a b", "line\n", "x" * 200, 7])
def test_a_text_that_is_no_token_is_refused_without_repeating_it(token):
    with pytest.raises(
        ConfigurationError, match="expected the text that `numba-adam token make` printed, got something"
    ):
        ParameterClient("127.0.0.1:1", token=token)


def test_tokens_and_mutual_tls_work_together(authority, make_server, make_token, monkeypatch, tmp_path):
    token = make_token("alice", "--admin", "*")
    server = make_server(authority.write("server"), client_ca=authority.file, loopback_token="required")
    worker = authority.worker()
    tls = Tls(server_ca=authority.file, worker_certificate=worker.certificate, worker_key=worker.key)
    with ParameterClient(server.address, tls=tls, token=token, timeout_seconds=LONG) as client:
        assert client.create_model("m", {"w": WEIGHTS}).push({"w": WEIGHTS}).version == 1
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    with (
        ParameterClient(server.address, tls=tls, timeout_seconds=LONG) as client,
        pytest.raises(UnauthenticatedError, match="the call has no token"),
    ):
        client.list_models()


def test_without_the_setting_no_token_is_asked_for(make_server):
    server = make_server()
    for token in (None, "anything"):
        with ParameterClient(server.address, token=token, timeout_seconds=LONG) as client:
            assert client.list_models() == []


def test_the_setting_has_two_values(make_server):
    with pytest.raises(ConfigurationError, match="loopback_token='on': it must be 'required' or 'off'"):
        make_server(loopback_token="on")
