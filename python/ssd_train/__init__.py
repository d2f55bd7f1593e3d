"""SDMLP and SSD training."""
