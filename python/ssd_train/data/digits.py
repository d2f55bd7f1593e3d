"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import torch

from .dataset import Dataset, arrays_sha256, build


def load() -> Dataset:
    """Pixels / 16, split 80 : 20 by class with a fixed seed: 1437 training and 360 test samples of 64 values."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    arrays = {
        "x_train": torch.tensor(x_train, dtype=torch.float32),
        "y_train": torch.tensor(y_train, dtype=torch.int64),
        "x_test": torch.tensor(x_test, dtype=torch.float32),
        "y_test": torch.tensor(y_test, dtype=torch.int64),
    }
    return build("digits", arrays_sha256(arrays), arrays, "digits")
