"""Measures of a run: accuracies over tasks, and the structure of its layers."""
