"""Trains SDMLP and SSD: model, methods, data, metrics, command line. Kernels live in ssd_kernels."""

from importlib.metadata import version

__version__ = version("ssd-kernels")
