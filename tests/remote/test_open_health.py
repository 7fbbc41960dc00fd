"""Health checks without a token, by choice; reflection and everything else never."""

from __future__ import annotations

import grpc
import pytest
from calls import METHODS, bearer, status_of
from grpc_health.v1 import health_pb2

from numba_adam.errors import ConfigurationError

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


def check(service=""):
    return health_pb2.HealthCheckRequest(service=service).SerializeToString()


def test_by_choice_health_checks_need_no_token(make_server, admin):
    server = make_server(loopback_token="required", health_token="off")
    assert status_of(server.address, CHECK, (), check()) is grpc.StatusCode.OK
    assert status_of(server.address, CHECK, (), check("m")) is grpc.StatusCode.NOT_FOUND
    assert status_of(server.address, CHECK, bearer("wrong"), check()) is grpc.StatusCode.OK
    with grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        watching = channel.unary_stream(WATCH)(check(), timeout=800)
        assert health_pb2.HealthCheckResponse.FromString(next(watching)).status == 1
        watching.cancel()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (CHECK, WATCH)])
def test_everything_else_needs_one_all_the_same(method, make_server, admin):
    server = make_server(loopback_token="required", health_token="off")
    assert status_of(server.address, method, (), b"") is grpc.StatusCode.UNAUTHENTICATED
    assert status_of(server.address, "/grpc.health.v1.Health/Other", ()) is grpc.StatusCode.UNAUTHENTICATED


def test_the_setting_has_two_values(make_server):
    with pytest.raises(ConfigurationError, match="health_token='on': it must be 'required' or 'off'"):
        make_server(health_token="on")
