"""normalize_inputs: relu, then the norm."""

import pytest
import torch

from ssd_kernels import normalize_inputs, testing
from ssd_kernels.testing import id_of, make


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_rows_are_non_negative_and_of_unit_norm(dtype):
    x = make(3, 5, 17, dtype=dtype)
    y = normalize_inputs(x)
    assert y.dtype == dtype and y.shape == x.shape and (y >= 0).all()
    torch.testing.assert_close(y.double().norm(dim=-1), torch.ones(3, 5).double(), atol=4e-2, rtol=0)
    torch.testing.assert_close(
        y.float(), torch.nn.functional.normalize(torch.relu(x.float()), dim=-1), atol=1e-2, rtol=0
    )


def test_a_sample_without_a_positive_entry_becomes_zero_with_a_finite_gradient():
    x = torch.tensor([[-1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    y = normalize_inputs(x)
    assert y.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_gradcheck_and_empty_batch():
    torch.autograd.gradcheck(normalize_inputs, make(4, 5, dtype=torch.float64).requires_grad_())
    assert normalize_inputs(torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.parametrize(
    "x, eps, message",
    [
        (torch.arange(3), 1e-12, "x must be floating point"),
        (torch.ones(()), 1e-12, "at least one dimension"),
        (torch.ones(2), 0.0, "eps must be positive, got 0.0"),
    ],
)
def test_errors(x, eps, message):
    with pytest.raises(ValueError, match=message):
        normalize_inputs(x, eps)
