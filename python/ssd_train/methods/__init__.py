"""The methods by the name that `--method` takes. A new method is a file here and a line below."""

from .base import Batch, Loss, Method
from .finetune import Finetune
from .joint import Joint
from .sdmlp import SDMLPMethod
from .ssd import SSD

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "joint": Joint,
    "sdmlp": SDMLPMethod,
    "ssd": SSD,
}

__all__ = ["METHODS", "Batch", "Loss", "Method"]
