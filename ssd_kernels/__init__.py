"""Exact, fast Top-K sparse layers. (being built)"""
