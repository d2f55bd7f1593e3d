"""SGD, clamp and renormalisation on the touched rows alone."""

from .api import sparse_update_

__all__ = ["sparse_update_"]
