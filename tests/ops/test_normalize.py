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


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_squares_that_overflow_and_norms_that_vanish(dtype):
    """A row of 1e30 is no row of zeros, and in 16 bits a row without a positive entry is no row of NaN."""
    high = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.3 * high, 0.4 * high], [0.0, high]], dtype=dtype)
    wanted = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=dtype)
    torch.testing.assert_close(normalize_inputs(x), wanted)
    plain = torch.rand(50, 20).to(dtype)
    with_high = torch.cat([plain, torch.full((1, 20), high, dtype=dtype)])
    assert torch.equal(normalize_inputs(with_high)[:50], normalize_inputs(plain))


def test_gradcheck_and_empty_batch():
    torch.autograd.gradcheck(normalize_inputs, make(4, 5, dtype=torch.float64).requires_grad_())
    assert normalize_inputs(torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.parametrize(
    "x, eps, message",
    [
        (torch.arange(3), 1e-12, "x must be floating point"),
        (torch.ones(()), 1e-12, "at least one dimension"),
        (torch.ones(2), 0.0, "eps must be positive, at most 1e38, got 0.0"),
        (torch.ones(2), None, "eps must be positive, at most 1e38, got None"),
        (torch.ones(2).numpy(), 1e-12, "x must be a Tensor, got ndarray"),
    ],
)
def test_errors(x, eps, message):
    with pytest.raises(ValueError, match=message):
        normalize_inputs(x, eps)
