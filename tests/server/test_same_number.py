"""A sequence number belongs to the content that was answered; other content is never acknowledged."""

import threading

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1 import transfer_pb2
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server


@pytest.fixture
def worker(peer, params):
    peer.create(params, lr=0.1)
    return peer.session()


@pytest.fixture
def grads(params, grads_of):
    return grads_of(params, np.random.default_rng(1))


def others(grads, worker):
    """Return pushes with the same number and other content: gradients and header fields."""
    import google_crc32c

    crc = google_crc32c.value(b"".join(grad.tobytes() for grad in grads.values()))
    header = worker.header(grads)
    return {
        "another gradient": ({name: grad + 1 for name, grad in grads.items()}, {}),
        "one element": (grads | {"scalar": grads["scalar"] * np.float32(1.0000002)}, {}),
        "another base version": (grads, {"base_version": 1}),
        "an array less": (grads | {"bias": None}, {}),
        "no array": (dict.fromkeys(grads), {"checksum_kind": 0}),
        "other shapes": (grads, {"tensors": header.tensors[:3]}),
        "another dtype": (grads, {"dtype": 2}),
        "another size": (grads, {"total_bytes": 8}),
        "another kind of checksum": (grads, {"checksum_kind": transfer_pb2.CHECKSUM_KIND_CRC32C, "checksum": crc}),
    }


CASES = (
    "another gradient", "one element", "another base version", "an array less", "no array", "other shapes",
    "another dtype", "another size", "another kind of checksum",
)  # fmt: skip


def assert_reused(refusal, number=1):
    assert (refusal.code, refusal.detail.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.REASON_SEQUENCE_REUSED,
    )
    assert not refusal.detail.sequence_recorded
    assert f"sequence={number}: this number was answered for a push of other content" in refusal.message


@pytest.mark.parametrize("case", CASES)
def test_other_content_under_an_applied_number_is_refused_and_never_answered_as_applied(
    peer, worker, grads, refused, case
):
    first = worker.push(grads)
    before = peer.pull()
    other, changes = others(grads, worker)[case]
    for _ in range(2):
        assert_reused(refused(lambda: worker.push(other, **({"sequence": 1} | changes))))
    after = peer.pull()
    assert after.state == before.state
    assert all(after.arrays[name].tobytes() == array.tobytes() for name, array in before.arrays.items())
    again = worker.push(grads, sequence=1)  # and the true retry is answered as ever
    assert (again.version, again.staleness, again.duplicate) == (first.version, first.staleness, True)


def test_the_list_of_cases_has_every_field(worker, grads):
    assert tuple(others(grads, worker)) == CASES


@pytest.mark.parametrize("kind", ["not finite", "does not fit"])
def test_other_content_under_a_rejected_number_is_refused(worker, grads, refused, kind):
    bad, changes = (grads | {"scalar": np.float32(np.nan)}, {}) if kind == "not finite" else (grads, {"dtype": 2})
    rejection = refused(lambda: worker.push(bad, **({"sequence": 1} | changes)))
    assert rejection.detail.sequence_recorded
    assert_reused(refused(lambda: worker.push(grads, sequence=1)))
    assert refused(lambda: worker.push(bad, **({"sequence": 1} | changes))) == rejection
    assert worker.push(grads, sequence=2).version == 1


def test_other_content_in_push_pull_is_refused_too(peer, worker, grads, refused):
    peer.push_pull(worker, grads)
    worker.sequence = 0
    other = {name: -grad for name, grad in grads.items()}
    assert_reused(refused(lambda: peer.push_pull(worker, other)))
    worker.sequence = 0
    assert peer.push_pull(worker, grads)[0].duplicate


def test_a_retry_with_flipped_bits_is_a_corrupt_transfer_and_may_be_sent_again(worker, grads, refused):
    worker.push(grads)
    refusal = refused(lambda: worker.push(grads, sequence=1, checksum=5))
    assert refusal.detail.reason == Reason.REASON_CORRUPT_TRANSFER
    assert worker.push(grads, sequence=1).duplicate


def test_a_retry_may_divide_its_payload_differently(worker, grads):
    worker.push(grads)
    assert worker.push(grads, sequence=1, chunk_bytes=13).duplicate


def test_a_retry_may_list_absent_arrays_in_another_order(worker, grads):
    some = grads | {"weight": None, "bias": None}
    worker.push(some, absent=["weight", "bias"])
    assert worker.push(some, sequence=1, absent=["bias", "weight"]).duplicate


def test_a_retry_without_its_payload_is_not_answered_as_applied(peer, worker, grads, refused):
    """The header does not identify the gradient."""
    worker.push(grads)
    header, *_ = worker.messages(grads, sequence=1)
    refusal = refused(lambda: peer.stub.Push(iter([header]), timeout=800))
    assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
    assert "ended before its trailer" in refusal.message


def test_repeats_are_counted_once_each(peer, worker, grads, refused):
    worker.push(grads)
    for _ in range(2):
        worker.push(grads, sequence=1)
    refused(lambda: worker.push({name: -grad for name, grad in grads.items()}, sequence=1))
    (status,) = peer.stub.GetServerStatus(pb.GetServerStatusRequest()).models
    assert (status.pushes_applied, status.pushes_repeated, status.pushes_rejected) == (1, 2, 0)


def test_after_a_restart_other_content_is_refused_and_the_retry_is_answered(config, peers, params, grads, refused):
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params, lr=0.1)
        worker = peer.session()
        first = worker.push(grads)
    with Server(config) as server:
        worker.peer = peers(server.address)
        assert_reused(refused(lambda: worker.push({name: -grad for name, grad in grads.items()}, sequence=1)))
        again = worker.push(grads, sequence=1)
        assert (again.version, again.duplicate) == (first.version, True)


def test_of_two_simultaneous_pushes_with_one_number_one_is_applied(server, peer, worker, grads, refused):
    """The first pauses in mid-stream. The second, with other content, is told to retry, and then refused."""
    header, *rest = worker.messages(grads, sequence=1, chunk_bytes=100)
    finish = threading.Event()

    def slowly():
        yield header
        finish.wait(800)
        yield from rest

    push = peer.stub.Push.future(slowly())
    while not server._runtime.pushes.receiving:  # the test's timeout is its limit
        peer.state()
    other = {name: -grad for name, grad in grads.items()}
    reasons = {Reason.REASON_IN_PROGRESS}
    while reasons != {Reason.REASON_SEQUENCE_REUSED}:  # the test's timeout is its limit
        reasons = {refused(lambda: worker.push(other, sequence=1)).detail.reason}
        assert reasons <= {Reason.REASON_IN_PROGRESS, Reason.REASON_SEQUENCE_REUSED}
        finish.set()
    assert push.result(800).ack.version == 1
    assert not push.result(800).ack.duplicate


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_creation_with_a_used_request_id_and_other_content_is_refused(peer, params, refused, exist_ok):
    """Otherwise a caller that reuses a request_id would train the wrong model."""
    peer.create(params, name="m", request_id="one", lr=0.5)
    others = params | {"scalar": np.array(0.25, np.float32)}
    for changes in ({"lr": 0.25}, {"lr": 0.5, "amsgrad": True}):
        refusal = refused(lambda c=changes: peer.create(params, name="m", request_id="one", exist_ok=exist_ok, **c))
        assert refusal.detail.reason == Reason.REASON_MODEL_EXISTS
        assert "exists and differs" in refusal.message
    refusal = refused(lambda: peer.create(others, name="m", request_id="one", exist_ok=exist_ok, lr=0.5))
    assert refusal.detail.reason == Reason.REASON_MODEL_EXISTS
    assert "request_id 'one' created it with other initial values" in refusal.message
    assert peer.create(params, name="m", request_id="one", exist_ok=exist_ok, lr=0.5).created
    found = peer.pull("m").arrays
    assert all(found[name].tobytes() == array.tobytes() for name, array in params.items())
