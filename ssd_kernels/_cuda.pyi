"""The native functions of ssd_kernels._cuda: addresses, sizes, strides; results behind the addresses.

Written and checked by tests/native_stub.py; what the arguments are stands in csrc/bindings."""

from typing import Any

MOST_SDMLP_BATCH: int

def activation_counts(
    *, dtype: int, batch: int, neurons: int, values: int, row_stride: int, column_stride: int, indices: int,
    counts: int, device: int, stream: int
) -> None: ...
def entry_dots(
    *, dtype: int, entries: int, outputs: int, grad: int, grad_stride: int, indices: int, samples: int, per_sample: int,
    weight: int, output_stride: int, neuron_stride: int, out: int, device: int, stream: int
) -> None: ...
def row_norms(
    *, dtype: int, x: int, rows: int, cols: int, stride: int, inverse: bool, norms: int, device: int, stream: int
) -> None: ...
def sdmlp_blocks(*, neurons: int, device: int) -> int: ...
def sdmlp_seed(fields: dict[str, Any]) -> bytes: ...
def sdmlp_step(
    *, train: bool, neurons: int, inputs: int, classes: int, k: int, batch: int, gaba_switch: float, lr: float,
    momentum: float, max_grad_norm: float, alpha: float, lam: float, temperature: float, reverse_kl: bool,
    aligned: bool, seeds: int, count: int, device: int, stream: int
) -> None: ...
def sparse_update(
    *, dtype: int, inputs: int, rows: int, weight: int, weight_stride: int, indices: int, grad: int, grad_stride: int,
    step: float, factor: int, clamp: bool, renormalise: bool, movement: int, device: int, stream: int
) -> None: ...
def threshold_select(
    *, score_dtype: int, dtype: int, batch: int, neurons: int, k: int, scores: int, row_stride: int, column_stride: int,
    x_scale: int, weight_scale: int, bias: int, relu: bool, inhibition: bool, values: int, indices: int, threshold: int,
    device: int, stream: int
) -> None: ...
def through_norm(
    *, dtype: int, rows: int, cols: int, sum: int, x: int, stride: int, numbers: int, inverse: int, out: int,
    device: int, stream: int
) -> None: ...
def top_n(*, neurons: int, n: int, counts: int, stride: int, selected: int, device: int, stream: int) -> None: ...
def topk_linear(
    *, dtype: int, batch: int, inputs: int, neurons: int, k: int, x: int, x_stride: int, weight: int,
    weight_stride: int, bias: int, x_scale: int, weight_scale: int, x_norms: int, weight_norm_most: int, relu: bool,
    inhibition: bool, parts: int, lists: int, values: int, indices: int, threshold: int, device: int, stream: int
) -> None: ...
def topk_linear_parts(*, batch: int, neurons: int, k: int, device: int) -> int: ...
def weighted_sums(
    *, dtype: int, wide_out: bool, sums: int, columns: int, starts: int, per_sum: int, order: int, factors: int,
    mask: int, indices: int, samples: int, per_row: int, row_scale: int, rows: int, row_stride: int, column_stride: int,
    places: int, out: int, out_row_stride: int, out_column_stride: int, device: int, stream: int
) -> None: ...
