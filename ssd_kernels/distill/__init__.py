"""The SSD loss: cross-entropy, selected-unit and logit distillation."""

from .api import DistillLoss, distill_hidden, distill_loss

__all__ = ["DistillLoss", "distill_hidden", "distill_loss"]
