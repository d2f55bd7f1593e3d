"""The command `ssd-train`."""
