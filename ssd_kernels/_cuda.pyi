"""The native functions of ssd_kernels._cuda: addresses, sizes, strides; results behind the addresses.

Written and checked by tests/native_stub.py; what the arguments are stands in csrc/bindings."""

def row_norms(x: int, rows: int, cols: int, stride: int, norms: int, device: int, stream: int) -> None: ...
