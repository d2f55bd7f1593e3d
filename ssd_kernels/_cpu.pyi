"""The native functions of ssd_kernels._cpu: addresses, sizes, strides; results behind the addresses.

Written and checked by tests/native_stub.py; what the arguments are stands in csrc/bindings."""

from typing import Any

openmp: bool

def activation_counts_dense(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: str, /
) -> None: ...
def activation_counts_sparse(arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, /) -> None: ...
def batch_topk_linear(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: tuple[int, int], arg5: tuple[int, int], arg6: bool, arg7: int,
    arg8: int, arg9: int, arg10: int, arg11: int, arg12: str, /
) -> tuple[ActiveRows, float]: ...
def best_simd_level() -> str: ...
def check_rows(arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: bool, /) -> tuple[int, int]: ...
def distill_hidden(
    arg0: int, arg1: int, arg2: int, arg3: tuple[int, int, int, int, int, int, int],
    arg4: tuple[int, int, int, int, int, int, int], arg5: int, arg6: float, arg7: bool, arg8: int, arg9: int,
    arg10: int, arg11: str, /
) -> tuple[Any, ...]: ...
def distill_logits(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: float, arg12: bool, arg13: int, arg14: int, arg15: int, arg16: int, arg17: int, arg18: str, /
) -> tuple[Any, ...]: ...
def gaba_linear_dense(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: str, /
) -> None: ...
def gaba_linear_dense_backward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: str, /
) -> None: ...
def gaba_linear_most_pairs(arg0: int, arg1: int, /) -> int: ...
def gaba_linear_pairs_backward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: int, arg14: int, arg15: int, arg16: int, arg17: int, arg18: int,
    arg19: bool, arg20: int, arg21: str, /
) -> None: ...
def gaba_linear_rows(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: str, /
) -> ActiveRows: ...
def relu_fisher(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: tuple[int, int], arg6: tuple[int, int],
    arg7: tuple[int, int], arg8: int, arg9: int, arg10: float, arg11: int, arg12: int, arg13: int, arg14: int,
    arg15: int, arg16: str, /
) -> object: ...
def relu_mlp(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: tuple[int, int], arg6: tuple[int, int], arg7: int,
    arg8: tuple[int, int], arg9: int, arg10: int, arg11: int, arg12: int, arg13: str, /
) -> None: ...
def sdmlp_neuron_bounds(*, neurons: int, size: int) -> list[int]: ...
def simd_level(name: str) -> str: ...
def sparse_linear_backward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: int, arg14: int, arg15: str, /
) -> None: ...
def sparse_linear_forward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: str, /
) -> None: ...
def sparse_update(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: float,
    arg10: float, arg11: bool, arg12: bool, arg13: int, arg14: int, arg15: str, /
) -> int: ...
def threshold_linear(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: tuple[int, int], arg5: tuple[int, int], arg6: bool, arg7: int,
    arg8: int, arg9: int, arg10: int, arg11: int, arg12: str, /
) -> ActiveRows: ...
def top_n(arg0: int, arg1: int, arg2: int, arg3: int, /) -> None: ...
def topk_linear_backward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: int, arg11: int, arg12: int, arg13: bool, arg14: int, arg15: int, arg16: int, arg17: bool, arg18: bool,
    arg19: int, arg20: int, arg21: int, arg22: int, arg23: bool, arg24: int, arg25: str, /
) -> None: ...
def topk_linear_forward(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int,
    arg10: bool, arg11: bool, arg12: bool, arg13: bool, arg14: int, arg15: int, arg16: int, arg17: bool, arg18: int,
    arg19: int, arg20: bool, arg21: int, arg22: str, /
) -> None: ...
def topk_linear_pairs(
    arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: bool, arg6: int, arg7: int, arg8: int, /
) -> int: ...


class ActiveRows:
    @property
    def count(self) -> int: ...
    def copy(self, arg0: int, arg1: int, /) -> None: ...


class SdmlpTrainer:
    def __init__(
        self, *, weight: int, output_weight: int, counts: int, neurons: int, inputs: int, classes: int, k: int,
        gaba_switch: float, lr: float, momentum: float, max_grad_norm: float, alpha: float, lam: float,
        temperature: float, reverse_kl: bool, exhaustive: bool, cache_bytes: int, simd: str, share: tuple[Any, ...]
    ) -> None: ...
    def train(
        self, *, x: int, y: int, samples: int, order: int, count: int, batch: int, teacher: tuple[Any, ...],
        penalty: tuple[Any, ...], threads: int, should_stop: object
    ) -> tuple[Any, ...]: ...
    def infer(
        self, *, x: int, samples: int, threads: int, logits: int, frequencies: int, keep: int
    ) -> tuple[Any, ...]: ...
    def invalidate(self) -> None: ...
    def get_velocity(self, arg0: int, arg1: int, /) -> None: ...
    def set_velocity(self, arg0: int, arg1: int, /) -> None: ...
