"""How much a token may do: pushes per second, bytes per second, the size of a push. Changes count at once."""

from __future__ import annotations

import json

import grpc
import numpy as np
import pytest
from calls import bearer
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.cli import main
from numba_adam.client import Backoff, ParameterClient
from numba_adam.errors import ConfigurationError, RateLimitedError, TransferTooLargeError
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason
from numba_adam.server.runtime.rates import Cost, Rates
from numba_adam.server.storage import token_file

LONG = 800.0
WEIGHTS = np.ones(1000, np.float32)  # 4,000 bytes
RARELY = "1e-6"  # once in eleven days: no test waits that long, however slow its machine


@pytest.fixture
def limit(tmp_path):
    return lambda name, *words: main(["token", "limit", name, *words, "--data-dir", str(tmp_path / "data")])


@pytest.fixture
def model_of(connect, admin):
    """Return a function that opens the model with a token."""
    connect(admin).create_model("m", {"w": WEIGHTS})
    return lambda token, *worker: connect(token, *worker).open_model("m")


def test_pushes_above_the_rate_are_refused_with_the_time_to_wait(model_of, make_token):
    model = model_of(make_token("alice", "--push", "m", "--pushes-per-second", RARELY))
    assert model.push({"w": WEIGHTS}).version == 1
    for push in (model.push, model.push_pull):
        with pytest.raises(RateLimitedError, match="the token of 'alice' allows 1e-06 pushes per second") as caught:
            push({"w": WEIGHTS})
        detail = detail_of(caught.value)
        assert detail.reason == Reason.REASON_RATE_LIMITED
        assert 1e6 - 2 * LONG < detail.retry_after_milliseconds / 1000 < 1e6
        assert not detail.sequence_recorded
    assert model.pull()["w"].shape == (1000,)
    assert model.version == 1


def test_a_refused_push_is_not_in_doubt_and_its_number_stays_free(model_of, make_token, limit):
    """The same push, sent again after the limit has ended, is applied once."""
    model = model_of(make_token("alice", "--push", "m", "--pushes-per-second", RARELY), "w0")
    for version in (1, 2, 3):
        assert model.push({"w": WEIGHTS}).version == version
        with pytest.raises(RateLimitedError):
            model.push({"w": WEIGHTS})
        assert limit("alice") == 0
        assert limit("alice", "--pushes-per-second", str(float(RARELY) * (version + 1))) == 0


def test_a_client_waits_as_long_as_the_server_says(model_of, make_token):
    """Ten pushes per second: two in a row would be refused, and none of them is lost."""
    model = model_of(make_token("alice", "--push", "m", "--pushes-per-second", "10"))
    futures = [model.push_async({"w": WEIGHTS}) for _ in range(14)]
    assert [future.result(LONG).version for future in futures] == list(range(1, 15))


def test_bytes_are_counted_in_both_directions(model_of, make_token):
    words = ("--push", "m", "--bytes-per-second", "1")
    pushing, pulling = (model_of(make_token(name, *words)) for name in ("alice", "bob"))
    assert pushing.push({"w": WEIGHTS}).version == 1  # no gradient is too large for its rate
    assert pulling.pull()["w"].shape == (1000,)
    for model in (pushing, pulling):
        for call in (model.pull, lambda model=model: model.push({"w": WEIGHTS})):
            with pytest.raises(RateLimitedError, match="allows 1 bytes per second"):
                call()
    assert pulling.version == 1


def test_the_answer_to_a_push_is_sent_although_it_exceeds_the_rate(model_of, make_token):
    model = model_of(make_token("alice", "--push", "m", "--bytes-per-second", "1"))
    assert model.push_pull({"w": WEIGHTS})["w"].shape == (1000,)
    with pytest.raises(RateLimitedError) as caught:
        model.pull()
    assert detail_of(caught.value).retry_after_milliseconds > 7_000_000 - 1000 * LONG


def test_the_bytes_of_a_creation_are_counted(connect, make_token):
    client = connect(make_token("alice", "--admin", "*", "--bytes-per-second", "1"))
    client.create_model("a", {"w": WEIGHTS})
    with pytest.raises(RateLimitedError, match="the token of 'alice'"):
        client.create_model("b", {"w": WEIGHTS})
    assert [info.name for info in client.list_models()] == ["a"]


def test_a_push_above_the_largest_size_is_refused_before_its_payload(model_of, make_token, server):
    token = make_token("alice", "--push", "m", "--largest-push", "3999")
    model = model_of(token)
    with pytest.raises(TransferTooLargeError, match=r"total_bytes=4000: the token of 'alice' allows .* at most 3999"):
        model.push({"w": WEIGHTS})
    assert model.push({"w": WEIGHTS.astype(np.float16)}).version == 1
    header = pb.PushHeader(model="m", worker_id="w", total_bytes=1 << 40)
    path = "/numba_adam.ps.v1.ParameterService/Push"
    with grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        messages = iter([pb.PushRequest(header=header).SerializeToString()])
        with pytest.raises(grpc.RpcError, match=f"total_bytes={1 << 40}: the token of 'alice'"):
            channel.stream_unary(path)(messages, metadata=bearer(token), timeout=LONG)
    model.pull()
    assert model.version == 1


def test_a_payload_larger_than_its_header_says_is_refused(model_of, make_token, server):
    token = make_token("alice", "--push", "m", "--largest-push", "100")
    model_of(token)
    header = pb.PushHeader(model="m", worker_id="w", total_bytes=100, dtype=1, checksum_kind=1)
    messages = [
        pb.PushRequest(header=header).SerializeToString(),
        pb.PushRequest(chunk={"offset": 0, "data": bytes(4000)}).SerializeToString(),
    ]
    with grpc.insecure_channel(server.address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream("/numba_adam.ps.v1.ParameterService/Push")(
            iter(messages), metadata=bearer(token), timeout=LONG
        )
        with pytest.raises(grpc.RpcError):
            list(call)
        (raw,) = [value for key, value in call.trailing_metadata() if key == "numba-adam-error-bin"]
    assert ErrorDetail.FromString(raw).reason != Reason.REASON_RATE_LIMITED


def test_limits_change_without_a_restart(model_of, make_token, limit):
    model = model_of(make_token("alice", "--push", "m"))
    for _ in range(3):
        model.push({"w": WEIGHTS})
    assert limit("alice", "--pushes-per-second", RARELY) == 0
    assert model.push({"w": WEIGHTS}).version == 4
    with pytest.raises(RateLimitedError):
        model.push({"w": WEIGHTS})
    assert limit("alice", "--largest-push", "1") == 0
    with pytest.raises(TransferTooLargeError):
        model.push({"w": WEIGHTS})
    assert limit("alice") == 0
    assert model.push({"w": WEIGHTS}).version == 5


def test_one_holder_does_not_use_up_the_rate_of_another(model_of, make_token):
    words = ("--push", "m", "--pushes-per-second", RARELY)
    first, second = (model_of(make_token(name, *words)) for name in ("alice", "bob"))
    assert [first.push({"w": WEIGHTS}).version, second.push({"w": WEIGHTS}).version] == [1, 2]


def test_several_connections_of_a_holder_share_its_rate(connect, model_of, make_token):
    token = make_token("alice", "--push", "m", "--pushes-per-second", RARELY)
    assert model_of(token).push({"w": WEIGHTS}).version == 1
    with pytest.raises(RateLimitedError):
        model_of(token).push({"w": WEIGHTS})


def test_the_list_shows_the_limits_and_a_new_token_has_none(make_token, limit, tmp_path, capsys):
    make_token("alice", "--push", "m", "--bytes-per-second", "50MB", "--largest-push", "8MiB")
    listing = ["token", "list", "--data-dir", str(tmp_path / "data")]
    assert main(listing) == 0
    assert "bytes_per_second=5e+07 largest_push=8.38861e+06" in capsys.readouterr().out
    assert limit("alice", "--pushes-per-second", "2.5") == 0
    assert capsys.readouterr().out == "limited alice: pushes_per_second=2.5\n"
    make_token("alice", "--push", "m", "--replace")
    assert main(listing) == 0
    assert "second" not in capsys.readouterr().out
    assert limit("nobody") == 1
    assert "there is no token of this name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--pushes-per-second", "0"),
        ("--pushes-per-second", "-1"),
        ("--pushes-per-second", "nan"),
        ("--pushes-per-second", "inf"),
        ("--pushes-per-second", "many"),
        ("--bytes-per-second", "0"),
        ("--bytes-per-second", "50 parsecs"),
        ("--largest-push", "0MB"),
    ],
)
def test_an_impossible_limit_is_refused(option, text, make_token, limit, capsys):
    make_token("alice", "--push", "m")
    with pytest.raises(SystemExit):
        limit("alice", option, text)
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "limits",
    [
        {"pushes_per_hour": 1},
        {"largest_push": "1"},
        {"largest_push": 0},
        {"largest_push": True},
        {"largest_push": float("nan")},
        {"pushes_per_second": float("inf")},
        [],
        7,
    ],
)
def test_limits_that_cannot_be_understood_make_no_token_valid(limits, make_token, tmp_path):
    """A limit that is left out would let everything through."""
    make_token("alice", "--push", "m", "--largest-push", "1")
    path = tmp_path / "data" / "tokens.json"
    values = json.loads(path.read_text())
    values["tokens"][0]["limits"] = limits
    del values["xxh3_64"]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match="it cannot be read"):
        token_file.read(tmp_path / "data")


def test_a_client_gives_up_at_once_if_the_wait_is_longer_than_its_deadline(model_of, make_token):
    model = model_of(make_token("alice", "--push", "m", "--pushes-per-second", RARELY))
    model.push({"w": WEIGHTS})
    with pytest.raises(RateLimitedError, match="gave up after 1 try"):
        model.push({"w": WEIGHTS})


@given(
    rate=st.floats(0.01, 1e9),
    moments=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1e9)), min_size=1, max_size=60),
)
def test_no_time_sees_more_than_the_rate_and_whoever_waits_is_served(rate, moments):
    """The oracle counts what was taken in every span of time between two calls."""
    now, taken = [0.0], []
    rates = Rates(lambda: now[0])
    for pause, amount in moments:
        now[0] += pause
        cost = Cost("alice", "x", rate, amount)
        wait = rates.take([cost])
        if wait:
            now[0] += wait * (1 + 1e-9) + 1e-9
            assert rates.take([cost]) == 0
        taken.append((now[0], amount))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            amount = sum(amount for _, amount in taken[first:last])  # without the last: one call may exceed the rate
            assert amount <= rate * (taken[last][0] - taken[first][0] + 1) * (1 + 1e-6) + 1e-6


def test_a_call_that_is_refused_takes_nothing_of_another_rate():
    now = [0.0]
    rates = Rates(lambda: now[0])
    pushes, nbytes = Cost("alice", "pushes", 1, 1), Cost("alice", "bytes", 1, 100)
    assert rates.take([nbytes]) == 0
    for _ in range(50):
        assert rates.take([pushes, nbytes]) == 99
    assert rates.take([pushes]) == rates.take([pushes]) == 0
    assert rates.take([pushes]) == 1


def test_a_changed_rate_begins_anew():
    rates = Rates(lambda: 0.0)
    assert rates.take([Cost("alice", "x", 1e-6, 1)]) == 0
    assert rates.take([Cost("alice", "x", 1e-6, 1)]) > 900_000
    assert rates.take([Cost("alice", "x", 5, 1)]) == 0


def test_backoff_without_more_tries_reports_the_limit(server, admin, make_token, connect):
    """What a person sees who uses a command: one try."""
    connect(admin).create_model("m", {"w": WEIGHTS})
    token = make_token("alice", "--pull", "m", "--bytes-per-second", "1")
    backoff = Backoff(most_tries=1)
    with ParameterClient(server.address, token=token, tls=False, backoff=backoff, timeout_seconds=LONG) as client:
        assert client.open_model("m").pull()["w"].shape == (1000,)
        with pytest.raises(RateLimitedError, match="try again in"):
            client.open_model("m").pull()
