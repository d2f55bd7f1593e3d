"""ConvMixer (Trockman and Kolter 2022): patches, then depth times a residual depthwise and a pointwise convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.fn = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class ConvMixer(nn.Module):
    """Images (B, 3, H, W) to logits; `embed` gives the pooled features before the classifier, (B, dim).

    The parameters' names begin with `features.` and `classifier.`.
    """

    def __init__(self, dim: int = 256, depth: int = 8, kernel: int = 5, patch: int = 2, classes: int = 1000) -> None:
        super().__init__()

        def activated(convolution: nn.Module) -> list[nn.Module]:
            return [convolution, nn.GELU(), nn.BatchNorm2d(dim)]

        blocks = [
            nn.Sequential(
                Residual(nn.Sequential(*activated(nn.Conv2d(dim, dim, kernel, groups=dim, padding="same")))),
                *activated(nn.Conv2d(dim, dim, 1)),
            )
            for _ in range(depth)
        ]
        stem = activated(nn.Conv2d(3, dim, patch, stride=patch))
        self.features = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))


def from_state(state: dict[str, Tensor]) -> ConvMixer:
    """The network whose size the weights tell; a classifier in them is optional.

    Raises:
        KeyError, RuntimeError: keys or shapes are not those of a ConvMixer.
    """
    stem = state["features.0.weight"]
    depth = len({key.split(".")[1] for key in state if key.endswith(".0.fn.0.weight")})
    kernel = state["features.3.0.fn.0.weight"].shape[-1]
    classes = state["classifier.weight"].shape[0] if "classifier.weight" in state else 1
    model = ConvMixer(stem.shape[0], depth, kernel, stem.shape[-1], classes)
    wanted = {k: v for k, v in state.items() if k.startswith(("features.", "classifier."))}
    missing, unexpected = model.load_state_dict(wanted, strict=False)
    lost = [key for key in missing if key.startswith("features.")]
    if lost or unexpected:
        raise KeyError((lost + unexpected)[0])
    return model


@torch.no_grad()
def shape_of(model: ConvMixer) -> str:
    """`ConvMixer-256/8, kernel 5, patch 2`."""
    stem, blocks = model.features[0], [m for m in model.features if isinstance(m, nn.Sequential)]
    kernel = blocks[0][0].fn[0].kernel_size[0]
    return f"ConvMixer-{stem.out_channels}/{len(blocks)}, kernel {kernel}, patch {stem.kernel_size[0]}"
