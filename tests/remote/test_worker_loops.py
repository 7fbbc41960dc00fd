"""`Model.worker` over TLS and under an access token: the loop trains, and a refusal ends it with the right error."""

import numpy as np
import pytest

from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import AccessDeniedError, UnauthenticatedError

LONG = 800.0


@pytest.fixture
def secure(make_server, authority, admin):
    """A server that asks for TLS certificates and tokens."""
    return make_server(authority.write("server"), client_ca=authority.file, loopback_token="required")


@pytest.fixture
def join(secure, authority, make_token):
    """Return a function that connects with the worker's certificate and a token of this scope."""
    certificate = authority.worker()
    tls = Tls(server_ca=authority.file, worker_certificate=certificate.certificate, worker_key=certificate.key)
    clients = []

    def make(name, *scope):
        client = ParameterClient(secure.address, name, tls=tls, token=make_token(name, *scope), timeout_seconds=LONG)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_the_loop_trains_over_tls_with_a_token_that_may_push(join):
    weights = {"w": np.array([1, -2, 3], np.float32)}
    join("owner", "--admin", "*").create_model("m", weights, lr=0.5)
    model = join("w0", "--push", "m").open_model("m")
    versions = []
    for batch, step in model.worker(range(5)):
        versions.append(step.version)
        step.grads = {"w": np.full(3, batch + 1, np.float32)}
    assert versions == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(model.pull()["w"], weights["w"] - 0.5 * 5, rtol=0.2)
    assert model.version == 5


def test_a_token_that_may_only_pull_ends_the_loop_at_its_first_push(join):
    owner = join("owner", "--admin", "*")
    owner.create_model("m", {"w": np.ones(3, np.float32)})
    model = join("reader", "--pull", "m").open_model("m")
    seen = []

    def run():
        for batch, step in model.worker(range(5)):
            seen.append(batch)
            step.grads = {"w": np.ones(3, np.float32)}

    with pytest.raises(AccessDeniedError, match="push"):
        run()
    assert len(seen) <= 1
    model = owner.open_model("m")
    np.testing.assert_array_equal(model.pull()["w"], np.ones(3, np.float32))
    assert model.version == 0


def test_a_token_that_is_revoked_ends_the_loop_and_what_was_pushed_stays(join, revoke):
    owner = join("owner", "--admin", "*")
    owner.create_model("m", {"w": np.ones(3, np.float32)})
    model = join("w0", "--push", "m").open_model("m")
    seen = []

    def run():
        for batch, step in model.worker(range(9)):
            seen.append(batch)
            if batch == 3:
                assert revoke("w0") == 0
            step.grads = {"w": np.ones(3, np.float32)}

    with pytest.raises(UnauthenticatedError):
        run()
    assert seen == [0, 1, 2, 3]
    model = owner.open_model("m")
    model.pull()
    assert model.version == 3


@pytest.mark.parity
def test_the_loop_trains_a_pytorch_module_over_tls_with_a_token(join):
    import torch

    net = torch.nn.Linear(3, 1)
    join("owner", "--admin", "*").create_model("m", net.named_parameters(), lr=0.1)
    before = net.weight.detach().clone()
    model = join("w0", "--push", "m").open_model("m")
    for batch, _ in model.worker(torch.ones(5, 2, 3), net.named_parameters()):
        net(batch).sum().backward()
    model.pull(out=net.named_parameters())
    assert model.version == 5
    torch.testing.assert_close(net.weight.detach(), before - 0.5, rtol=0, atol=1e-4)


@pytest.mark.parity
def test_the_loop_trains_a_jax_pytree_over_tls_with_a_token(join):
    import jax
    import jax.numpy as jnp

    weights = {"layer": {"w": jnp.ones(3)}}
    model = join("owner", "--admin", "*").create_model("m", weights, lr=0.1)
    for batch, step in model.worker(range(5)):
        step.grads = jax.grad(lambda tree, batch=batch: (tree["layer"]["w"] * (batch + 1)).sum())(step.params)
    pulled = model.pull()
    assert isinstance(pulled["layer"]["w"], jax.Array)
    assert bool(jnp.all(pulled["layer"]["w"] < 0.7))
