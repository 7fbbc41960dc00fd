"""A live server gets mutated messages: it answers each with a meaningful status, and continues to work."""

import contextlib
import json
import random
from pathlib import Path

import grpc
import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
EXCHANGES = [
    exchange
    for number in (1, 2)
    for exchange in json.loads((GOLDEN / f"requests-v{number}.json").read_text())["exchanges"]
]
MEANT = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,  # gRPC's own answer to two requests of a call that takes one
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a pull of a version far away
}


def mutate(messages, rng):
    """Return the messages of an exchange with a few mutations."""
    raws = [bytearray.fromhex(message) for message in messages]
    for _ in range(rng.randint(1, 3)):
        raw = rng.choice(raws)
        kind = rng.randrange(4)
        at = rng.randrange(len(raw) + 1)
        if kind == 0 and at < len(raw):
            raw[at] = rng.randrange(256)
        elif kind == 1:
            raw[at:at] = rng.randbytes(rng.randint(1, 4))
        elif kind == 2:
            del raw[at : at + rng.randint(1, 8)]
        else:
            raws.insert(rng.randrange(len(raws) + 1), bytearray(rng.choice(raws)))
    return [bytes(raw) for raw in raws]


@pytest.mark.parametrize("seed", range(4))
def test_every_mutated_message_gets_a_meaningful_status(tmp_path, seed, campaign):
    folder = tmp_path / "data" / "models" / "golden"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "lock").touch()  # so did the first release leave a folder after a clean stop
    (folder / "00000001.snapshot").write_bytes((GOLDEN / "snapshot-v1.safetensors").read_bytes())
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        memory_budget_bytes=1 << 24,
        snapshot_interval_seconds=0,
        rpc_threads=8,
    )
    seed = [campaign.seed(0), seed]
    rng = random.Random(repr(seed))
    harmless = [exchange for exchange in EXCHANGES if exchange["call"] != "DeleteModel"]
    with Server(config) as server, grpc.insecure_channel(server.address) as channel:
        for number in range(250):
            exchange = rng.choice(harmless)
            requests = mutate(exchange["requests"], rng)
            call = channel.stream_stream(f"/numba_adam.ps.v1.ParameterService/{exchange['call']}", None, None)
            answers = call(iter(requests), timeout=0.5)
            with contextlib.suppress(grpc.RpcError):
                list(answers)
            trace = (seed, number, exchange["what"], [raw.hex() for raw in requests])
            assert answers.code() in MEANT, (answers.details(), trace)
        assert server._runtime.pool.used_bytes <= config.memory_budget_bytes
    with Server(config) as server, grpc.insecure_channel(server.address) as channel:  # and what it saved is whole
        assert server._runtime.registry.all()
    campaign.did(requests=250)
