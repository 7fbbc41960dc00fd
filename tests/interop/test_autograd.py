"""PyTorch refuses a backward pass through values that we have overwritten, as after its own writes."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.interop import count_writes

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]

OVERWRITTEN = "modified by an inplace operation"


def test_backward_through_a_graph_made_before_the_step_is_an_error():
    param = torch.ones(3, requires_grad=True)
    optimizer = na.Adam([param], lr=0.5)
    loss = (param**2).sum()
    optimizer.step([torch.ones(3)])
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


def test_backward_through_a_graph_made_after_the_step_has_the_new_values():
    param = torch.ones(3, requires_grad=True)
    na.Adam([param], lr=0.5).step([torch.ones(3)])
    (param**2).sum().backward()
    assert torch.equal(param.grad, 2 * param.detach())
    assert param.detach().tolist() == pytest.approx([0.5] * 3, rel=1e-5)


def leaves(*sizes):
    return [torch.ones(size, requires_grad=True) for size in sizes]


def versions(tensors):
    return [tensor._version for tensor in tensors]


def test_only_parameters_with_a_gradient_are_written_to():
    params = leaves(3, 2)
    optimizer = na.Adam({"a": params[0], "b": params[1]})
    optimizer.step({"a": None, "b": np.ones(2, np.float32)})
    assert versions(params) == [0, 1]


def test_a_skipped_or_refused_step_writes_nothing():
    params = leaves(3)
    optimizer, grad = na.Adam(params), torch.full((3,), float("inf"))
    assert not optimizer.step([grad], max_grad_norm=1.0, zero_grad=True).applied
    with pytest.raises(ValueError, match="shape"):
        optimizer.step([torch.ones(4)])
    assert versions([*params, grad]) == [0, 0]
    assert grad.isinf().all()


def test_gradients_set_to_zero_count_as_written():
    params, grads = leaves(3, 2), [torch.ones(3), torch.ones(2)]
    optimizer = na.Adam(params)
    optimizer.step(grads)
    assert versions(grads) == [0, 0]
    optimizer.step([grads[0], None], zero_grad=True)
    assert (versions(grads), grads[0].any().item()) == ([1, 0], False)


def test_setting_a_gradient_in_a_graph_to_zero_is_detected():
    """As with create_graph=True: the gradient is needed again by the second backward pass."""
    grad = torch.full((3,), 2.0)
    weight = torch.ones(3, requires_grad=True)
    penalty = (grad * weight).sum()
    na.Adam([np.ones(3, np.float32)]).step([grad], zero_grad=True)
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        penalty.backward()


def test_accumulating_writes_to_no_tensor_and_the_step_with_the_sums_writes_to_the_parameters():
    params, grads = leaves(3), [torch.ones(3)]
    optimizer = na.Adam(params)
    optimizer.accumulate(grads)
    optimizer.accumulate(grads)
    assert versions([*params, *grads]) == [0, 0]
    optimizer.step()
    assert versions([*params, *grads]) == [1, 0]


@pytest.mark.parametrize("options", [{}, {"low_precision_copy": "bfloat16", "ema_decay": 0.5}, {"state_dtype": "8bit"}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_writes_to_parameters_of_every_format_are_counted(dtype, options):
    params = [torch.ones(3, dtype=getattr(torch, dtype), requires_grad=True)]
    optimizer = na.Adam(params, master_weights=dtype != "float32" and not options, **options)
    for count in range(1, 4):
        optimizer.step([torch.ones(3)])
        assert versions(params) == [count]


def test_writes_to_parameters_of_two_precisions_are_counted():
    params = [torch.ones(2, dtype=torch.float64), torch.ones(2), torch.ones(0)]
    na.Adam(params).step([torch.ones(2, dtype=torch.float64), torch.ones(2), torch.ones(0)])
    assert versions(params) == [1, 1, 1]


def test_writes_to_a_parameter_with_replaced_storage_are_counted():
    params = leaves(3)
    optimizer = na.Adam(params)
    optimizer.step([torch.ones(3)])
    params[0].data = params[0].data.clone()
    before = versions(params)[0]
    optimizer.step([torch.ones(3)])
    assert versions(params)[0] > before


def test_a_view_of_the_parameter_in_a_graph_is_protected_too():
    param = torch.ones(4, requires_grad=True)
    loss = (param[1:3] ** 2).sum()
    na.Adam([param]).step([torch.ones(4)])
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


def test_a_parameter_that_is_a_view_protects_its_base():
    base = torch.ones(4)
    weight = torch.ones(4, requires_grad=True)
    loss = (base * weight).sum()
    na.Adam([base[1:3]]).step([torch.ones(2)])
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


def test_loading_a_state_dict_writes_to_no_tensor():
    params = leaves(3)
    optimizer = na.Adam(params)
    optimizer.step([torch.ones(3)])
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert versions(params) == [1]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_update_counts_its_writes(amsgrad):
    param, grad, *moments = [torch.ones(3, requires_grad=k == 0) for k in range(5 if amsgrad else 4)]
    largest = {"max_exp_avg_sq": moments[2]} if amsgrad else {}
    loss = (param**2).sum()
    na.adam_update(param, grad, moments[0], moments[1], 1, **largest)
    assert versions([param, grad, *moments]) == [1, 0, *[1 for _ in moments]]
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


def test_a_refused_adam_update_writes_nothing():
    tensors = [torch.ones(3) for _ in range(4)]
    with pytest.raises(ValueError, match="shape"):
        na.adam_update(tensors[0], torch.ones(4), *tensors[1:3], 1)
    with pytest.raises(ValueError, match="step"):
        na.adam_update(*tensors, 0)
    assert versions(tensors) == [0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_row_updates_count_their_writes(mode):
    table, exp_avg, exp_avg_sq, largest = (torch.ones(4, 2) for _ in range(4))
    state = {} if mode == "lazy" else {"last_step": np.zeros(4, np.int64), "history": na.RowHistory()}
    grads = torch.ones(1, 2)
    rows = np.array([1])
    na.adam_update_rows(table, rows, grads, exp_avg, exp_avg_sq, 1, mode=mode, max_exp_avg_sq=largest, **state)
    assert versions([table, exp_avg, exp_avg_sq, largest, grads]) == [1, 1, 1, 1, 0]
    if mode == "exact":
        na.adam_catch_up_rows(table, None, exp_avg, exp_avg_sq, 2, max_exp_avg_sq=largest, **state)
        assert versions([table, exp_avg, exp_avg_sq, largest]) == [2, 2, 2, 2]


def test_refused_rows_write_nothing():
    tensors = [torch.ones(4, 2) for _ in range(3)]
    with pytest.raises(ValueError, match="rows"):
        na.adam_update_rows(tensors[0], np.array([4]), torch.ones(1, 2), *tensors[1:], 1)
    assert versions(tensors) == [0, 0, 0]


def test_rows_of_an_embedding_in_a_graph_are_protected():
    table = torch.ones(4, 2, requires_grad=True)
    loss = (table[torch.tensor([1])] ** 2).sum()
    na.adam_update_rows(table, np.array([1]), torch.ones(1, 2), torch.zeros(4, 2), torch.zeros(4, 2), 1)
    loss.backward()  # indexing copies: the graph holds the copy, which nobody wrote to
    loss = (table**2).sum()
    na.adam_update_rows(table, np.array([1]), torch.ones(1, 2), torch.zeros(4, 2), torch.zeros(4, 2), 1)
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        loss.backward()


def test_inference_tensors_without_a_counter_are_updated():
    with torch.inference_mode():
        param, grad = torch.ones(3), torch.ones(3)
    na.Adam([param], lr=0.5).step([grad], zero_grad=True)
    assert param.tolist() == pytest.approx([0.5] * 3, rel=1e-5)
    assert not grad.any()


def test_writes_are_counted_in_every_version_of_pytorch(monkeypatch):
    """PyTorch 2.5 and later take a list, 2.1 to 2.4 one tensor, and earlier versions have no such function."""
    modern = torch.autograd.graph.increment_version

    def one_at_a_time(tensor):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError("increment_version expect a Tensor as input")
        if tensor.is_inference():
            raise RuntimeError("Inference tensors do not track version counter.")
        modern(tensor)

    with torch.inference_mode():
        untracked = torch.ones(3)
    for function in (modern, one_at_a_time, None):
        if function is None:
            monkeypatch.delattr(torch.autograd.graph, "increment_version")
        else:
            monkeypatch.setattr(torch.autograd.graph, "increment_version", function)
        given = [torch.ones((), requires_grad=True), torch.ones(0), torch.ones(2, 3).T, torch.ones(1).expand(4)]
        given += [torch.ones(2, 2, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(3))]
        values = [tensor.detach().clone() for tensor in given]
        count_writes([*given, untracked, np.ones(3), None])
        assert all(tensor._version == 1 for tensor in given)
        assert all(torch.equal(tensor, value) for tensor, value in zip(given, values, strict=True))
