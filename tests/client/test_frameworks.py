"""Gradients directly from PyTorch and JAX, and pulls directly into a PyTorch model."""

from __future__ import annotations

import numpy as np
import pytest

from numba_adam.errors import NamesError, NonFiniteError, ReadOnlyError

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

pytestmark = pytest.mark.parity


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
def test_a_pytorch_worker_trains(client):
    layer = torch.nn.Linear(5, 3)
    model = client.create_model("m", dict(layer.named_parameters()), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    layer(torch.ones(5)).sum().backward()
    ack = model.push({name: parameter.grad for name, parameter in layer.named_parameters()})
    model.pull(out=dict(layer.named_parameters()))
    assert (ack.version, model.version) == (1, 1)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1)  # the first step is lr, against the sign
    assert model.push(dict.fromkeys(before)).version == 2


@pytest.mark.skipif(jax is None, reason="JAX is not installed; the parity environment has it")
def test_a_jax_worker_trains(client):
    model = client.create_model("m", {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}, lr=0.1)
    grads = jax.grad(lambda p: (jnp.ones(3) @ p["w"] + p["b"]).sum())({"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    assert model.push(grads).version == 1
    pulled = model.pull()
    np.testing.assert_allclose(pulled["w"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(pulled["b"], -0.1, rtol=1e-5)


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
def test_a_backward_pass_through_tensors_overwritten_by_a_pull_is_an_error(client):
    weights = {"w": torch.ones(3, requires_grad=True)}
    model = client.create_model("m", weights, lr=0.1)
    loss = (weights["w"] ** 2).sum()
    model.push({"w": torch.ones(3)})
    model.pull(out=weights)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
class TestTorch:
    """A PyTorch module as it is: named_parameters(), state_dict(), `.grad`, the worker's loop."""

    def net(self):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def check_close(self, net, other):
        for left, right in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)

    def test_named_parameters_are_pushed_by_their_grad_and_pulled_in_place(self, client):
        net, twin, x = self.net(), self.net(), torch.linspace(-1, 1, 24).reshape(6, 4)
        model = client.create_model("m", net.named_parameters(), lr=0.01, eps_mode="algorithm1")
        oracle = torch.optim.Adam(twin.parameters(), lr=0.01)
        before = [parameter.data_ptr() for parameter in net.parameters()]
        for _ in range(5):
            net.zero_grad()
            net(x).square().mean().backward()
            model.push(net.named_parameters())
            model.pull(out=net.named_parameters())
            oracle.zero_grad()
            twin(x).square().mean().backward()
            oracle.step()
        self.check_close(net, twin)
        assert [parameter.data_ptr() for parameter in net.parameters()] == before
        assert all(parameter.requires_grad for parameter in net.parameters())

    def test_parameters_without_a_gradient_do_not_change(self, client):
        net = self.net()
        net[0].weight.requires_grad_(False)
        model = client.create_model("m", net.named_parameters(), lr=0.1)
        net(torch.ones(4)).sum().backward()
        net[2].bias.grad = None
        model.push(net.named_parameters())
        pulled = model.pull()
        assert torch.equal(pulled["0.weight"], net[0].weight)
        assert torch.equal(pulled["2.bias"], net[2].bias)
        assert not torch.equal(pulled["0.bias"], net[0].bias)
        assert model.push(self.net().named_parameters()).version == 2  # none of them has a gradient

    def test_a_state_dict_comes_back_as_one(self, client):
        net = self.net()
        model = client.create_model("m", net.state_dict())
        pulled = model.pull()
        assert type(pulled) is type(net.state_dict())
        assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in pulled.values())
        other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        other.load_state_dict(pulled)
        self.check_close(net, other)
        third = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        model.pull(out=third.state_dict())
        self.check_close(net, third)

    def test_a_state_dict_with_its_parameters_pushes_their_gradients(self, client):
        net = self.net()
        model, twin = (client.create_model(name, net.named_parameters(), lr=0.1) for name in ("m", "twin"))
        net(torch.ones(3, 4)).sum().backward()
        model.push(net.state_dict(keep_vars=True))
        twin.push(net.named_parameters())
        for name, tensor in model.pull().items():
            assert torch.equal(tensor, twin.pull()[name])

    def test_a_tensor_that_requires_a_gradient_is_a_parameter(self, client):
        weights = {"w": torch.ones(3, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
        model = client.create_model("m", weights, lr=0.5)
        weights["w"].sum().backward()
        model.push(weights)
        model.pull(out=weights)
        torch.testing.assert_close(weights["w"].detach(), torch.full((3,), 0.5))
        assert weights["b"].tolist() == [0, 0]

    def test_a_gradient_that_requires_a_gradient_itself_is_pushed(self, client):
        weights = {"w": torch.ones(3, requires_grad=True)}
        model = client.create_model("m", weights, lr=0.5)
        (grad,) = torch.autograd.grad((weights["w"] ** 2).sum(), weights["w"], create_graph=True)
        assert grad.requires_grad
        model.push({"w": grad})
        torch.testing.assert_close(model.pull()["w"], torch.full((3,), 0.5))

    def test_the_loop_trains_a_module(self, client):
        net, twin, batches = self.net(), self.net(), list(torch.randn(10, 6, 4))
        model = client.create_model("m", net.named_parameters(), lr=0.01, eps_mode="algorithm1")
        for batch, _ in model.worker(batches, net.named_parameters()):
            net(batch).square().mean().backward()
        oracle = torch.optim.Adam(twin.parameters(), lr=0.01)
        for batch in batches:
            oracle.zero_grad()
            twin(batch).square().mean().backward()
            oracle.step()
        self.check_close(net, twin)
        assert model.push(dict(net.named_parameters())).version == 11

    def test_the_loop_starts_without_earlier_gradients(self, client):
        net = self.net()
        model = client.create_model("m", net.named_parameters(), lr=0.01)
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1e9)
        for _batch, _ in model.worker([torch.ones(4)], net.named_parameters()):
            assert all(parameter.grad is None for parameter in net.parameters())
            net(_batch).sum().backward()
        assert model.push(dict.fromkeys(dict(net.named_parameters()))).version == 2

    def test_a_loop_without_backward_is_an_error(self, client):
        net = self.net()
        model = client.create_model("m", net.named_parameters())
        with pytest.raises(NamesError, match=r"no parameter has a gradient: call backward\(\) in the loop"):
            list(model.worker([torch.ones(4)], net.named_parameters()))

    def test_a_backward_pass_after_the_loop_overwrote_its_tensors_is_an_error(self, client):
        net = self.net()
        model = client.create_model("m", net.named_parameters())
        kept = []
        for batch, _ in model.worker([torch.ones(4)], net.named_parameters()):
            kept.append(net(batch).square().sum())
            net(batch).sum().backward()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept[0].backward()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_a_narrow_module_trains_beside_a_wide_model(self, client, dtype):
        """The server keeps float32 parameters. The module gets them rounded, and pushes 16-bit gradients."""
        narrow = getattr(torch, dtype)
        net, batches = self.net().to(narrow), list(torch.randn(10, 6, 4).to(narrow))
        model = client.create_model("m", net.named_parameters(), lr=0.01, eps_mode="algorithm1")
        assert model.spec.dtype == np.float32
        masters = [parameter.detach().float().requires_grad_() for parameter in net.parameters()]
        oracle, twin = torch.optim.Adam(masters, lr=0.01), self.net().to(narrow)
        for batch, _ in model.worker(batches, net.named_parameters()):
            for parameter, same, master in zip(net.parameters(), twin.parameters(), masters, strict=True):
                same.data.copy_(master)
                torch.testing.assert_close(parameter, same, rtol=0.01, atol=1e-3)
                same.data.copy_(parameter)
            net(batch).square().mean().backward()
            twin.zero_grad()
            twin(batch).square().mean().backward()
            for master, same in zip(masters, twin.parameters(), strict=True):
                master.grad = same.grad.float()
            oracle.step()
            assert all(parameter.dtype == narrow for parameter in net.parameters())
        pulled = model.pull(dtype=narrow)
        assert model.version == 10
        assert {tensor.dtype for tensor in pulled.values()} == {narrow}
        for name, parameter in net.named_parameters():
            assert torch.equal(pulled[name], parameter)
            assert torch.equal(model.pull()[name].to(narrow), parameter)

    def test_a_rejected_push_leaves_a_graph_usable(self, client):
        """Nothing was pulled, so the parameters are not counted as overwritten."""
        net = self.net()
        model = client.create_model("m", net.named_parameters())
        loss = net(torch.ones(4)).square().sum()
        bad = {name: torch.full_like(parameter, torch.nan) for name, parameter in net.named_parameters()}
        for wrong in ({name: tensor.detach() for name, tensor in bad.items()}, {"0.weight": bad["0.weight"]}):
            with pytest.raises((NonFiniteError, NamesError)):
                model.push_pull(wrong, out=net.named_parameters())
        loss.backward()
        assert net[0].weight.grad is not None

    def test_channels_last_parameters_and_gradients_are_taken(self, client):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        twin = torch.nn.Conv2d(3, 4, 3)
        twin.load_state_dict(net.state_dict())
        model = client.create_model("m", net.named_parameters(), lr=0.01, eps_mode="algorithm1")
        oracle, x = torch.optim.Adam(twin.parameters(), lr=0.01), torch.randn(2, 3, 8, 8)
        for _batch, _ in model.worker([x] * 3, net.named_parameters()):
            net(x).square().mean().backward()
            oracle.zero_grad()
            twin(x).square().mean().backward()
            oracle.step()
        self.check_close(net, twin)
        assert net.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(jax is None, reason="JAX is not installed; the parity environment has it")
class TestJax:
    """A pytree of JAX arrays as it is."""

    def params(self):
        return {"hidden": {"w": jnp.ones((4, 3)) / 2, "b": jnp.zeros(3)}, "out": [jnp.ones((3, 1))]}

    def loss(self, params, x):
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return ((hidden @ params["out"][0]) ** 2).mean()

    def test_a_pytree_comes_back_as_one(self, client):
        model = client.create_model("m", self.params())
        assert list(model.spec.shapes) == ["hidden.w", "hidden.b", "out.0"]
        pulled = model.pull()
        assert jax.tree.structure(pulled) == jax.tree.structure(self.params())
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pulled))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), pulled, self.params()))

    def test_the_loop_trains_a_pytree(self, client):
        model = client.create_model("m", self.params(), lr=0.02)
        gradient, losses = jax.jit(jax.value_and_grad(self.loss)), []
        for batch, step in model.worker([jnp.ones((2, 4))] * 20):
            value, step.grads = gradient(step.params, batch)
            losses.append(float(value))
        assert losses[-1] < losses[0] / 2

    def test_narrow_arrays_are_pushed_and_pulled(self, client):
        model = client.create_model("m", jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), self.params()), lr=0.5)
        grads = jax.tree.map(lambda leaf: jnp.ones_like(leaf, dtype=jnp.bfloat16), self.params())
        model.push(grads)
        pulled = model.pull(dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(pulled)} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_allclose(pulled["hidden"]["w"].astype(np.float32), 0, atol=1e-6)
        assert model.pull()["hidden"]["b"].dtype == jnp.float32

    def test_jax_arrays_are_refused_as_outputs_by_name(self, client):
        model = client.create_model("m", self.params())
        for call in (lambda out: model.pull(out=out), lambda out: model.push_pull(out, out=out)):
            with pytest.raises(ReadOnlyError, match=r"out\['hidden\.w'\] \(JAX array\) is read-only"):
                call(self.params())
        with pytest.raises(ReadOnlyError, match=r"params\['hidden\.w'\] \(JAX array\) is read-only"):
            model.worker([], self.params())

    @pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it")
    def test_frameworks_may_be_mixed(self, client):
        given = {"t": torch.ones(2), "j": jnp.ones(3), "n": np.ones(1, np.float32)}
        pulled = client.create_model("m", given).pull()
        assert [type(pulled["t"]), isinstance(pulled["j"], jax.Array), type(pulled["n"])] == [
            torch.Tensor,
            True,
            np.ndarray,
        ]
