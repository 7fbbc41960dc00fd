"""Answers about many models come in pages of limited size."""

from concurrent import futures

import grpc
import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import DeadlineExceededError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.transport import pages

ONE = {"x": np.zeros(1, np.float32)}


def described_at_length(count):
    """Return parameters with this number of arrays, each with a name of 250 bytes."""
    return {f"{number:06d}{'n' * 244}": np.zeros((), np.float32) for number in range(count)}


def all_pages(call, request_type, page_size):
    found, token = [], ""
    while True:
        answer = call(request_type(page_size=page_size, page_token=token))
        found.append(answer)
        token = answer.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 8, 10**6])
def test_pages_have_every_model_once_in_order_of_names(peer, page_size):
    names = ["a", "B", "c.d", "c-d", "-", "_", "z9"]
    for name in names:
        peer.create(ONE, name=name)
    listed = all_pages(peer.stub.ListModels, pb.ListModelsRequest, page_size)
    assert [model.spec.name for page in listed for model in page.models] == sorted(names)
    assert [len(page.models) for page in listed[:-1]] == [page_size] * (len(listed) - 1)
    assert len(listed) == -(-len(names) // page_size)
    stated = all_pages(peer.stub.GetServerStatus, pb.GetServerStatusRequest, page_size)
    assert [model.model.spec.name for page in stated for model in page.models] == sorted(names)
    assert all(page.server_version and page.memory_budget_bytes for page in stated)


def test_without_a_page_size_one_answer_has_all_models(peer):
    for number in range(5):
        peer.create(ONE, name=f"m{number}")
    assert len(peer.stub.ListModels(pb.ListModelsRequest()).models) == 5
    assert len(peer.stub.GetServerStatus(pb.GetServerStatusRequest()).models) == 5
    assert not peer.stub.ListModels(pb.ListModelsRequest()).next_page_token


def test_a_page_is_limited_in_bytes_and_has_at_least_one_model(peer):
    long = described_at_length(2500)  # 650 kB: two of them are more than a page
    for name in "abc":
        peer.create(long, name=name)
    peer.create(described_at_length(5000), name="d")  # longer than a page alone
    listed = all_pages(peer.stub.ListModels, pb.ListModelsRequest, 1000)
    assert [[model.spec.name for model in page.models] for page in listed] == [["a"], ["b"], ["c"], ["d"]]
    assert all(page.ByteSize() < pages.PAGE_BYTES for page in listed[:-1])


def test_pages_continue_after_a_model_was_deleted_or_created(peer):
    for name in "abd":
        peer.create(ONE, name=name)
    first = peer.stub.ListModels(pb.ListModelsRequest(page_size=2))
    assert [model.spec.name for model in first.models] == ["a", "b"]
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="b"))
    peer.create(ONE, name="c")
    rest = peer.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=first.next_page_token))
    assert [model.spec.name for model in rest.models] == ["c", "d"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"page_size": -1}, "page_size=-1: it must be at least 0"), ({"page_token": "../x"}, "page_token='../x'")],
)
@pytest.mark.parametrize("call", ["ListModels", "GetServerStatus"])
def test_invalid_page_requests_are_refused(peer, refused, call, fields, words):
    request = getattr(pb, f"{call}Request")(**fields)
    refusal = refused(lambda: getattr(peer.stub, call)(request))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert words in refusal.message


def test_descriptions_beyond_the_clients_message_limit_are_listed(server, refused, peers, capsys, monkeypatch):
    """Beyond 64 MiB (here 1 MiB), `list_models`, `status` and the command failed with an error of gRPC."""
    from numba_adam.cli import main
    from numba_adam.client.transport import channel

    limit = 1 << 20
    options = dict(channel._OPTIONS) | {"grpc.max_receive_message_length": limit}
    monkeypatch.setattr(channel, "_OPTIONS", tuple(options.items()))
    monkeypatch.setattr(pages, "WHOLE_BYTES", limit)
    long = described_at_length(2500)  # 650 kB
    names = [f"m{number}" for number in range(3)]
    with ParameterClient(server.address) as client:
        for name in names:
            client.create_model(name, long)
        assert [info.name for info in client.list_models()] == names
        status = client.status()
        assert [model.model.name for model in status.models] == names
        assert all(len(model.model.shapes) == len(long) for model in status.models)
    assert main(["status", "--server", server.address]) == 0
    shown = capsys.readouterr().out
    assert all(f"model      {name}: 2,500 parameters in 2500 arrays" in shown for name in names)
    for call in ("ListModels", "GetServerStatus"):
        stub, request = peers(server.address).stub, getattr(pb, f"{call}Request")()
        refusal = refused(lambda stub=stub, call=call, request=request: getattr(stub, call)(request))
        assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_TOO_LARGE)
        assert f"take more than {limit} bytes; ask for pages" in refusal.message


def test_an_endless_list_ends_at_the_deadline_of_one_call():
    """Each page once had the timeout of a whole call."""
    endless = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: pb.ListModelsResponse(next_page_token="a"),
        request_deserializer=pb.ListModelsRequest.FromString,
        response_serializer=pb.ListModelsResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("numba_adam.ps.v1.ParameterService", {"ListModels": endless})
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, [service])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with (
            ParameterClient(f"127.0.0.1:{port}", timeout_seconds=0.5) as client,
            pytest.raises(DeadlineExceededError, match="list models"),
        ):
            client.list_models()
        server.stop(None).wait()
