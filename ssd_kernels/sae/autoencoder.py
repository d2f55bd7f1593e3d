"""TopKAutoencoder: a sparse autoencoder on the operations of this package, from the encoder to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._types import Backend, Rows, TopK
from ..batch_topk_linear import batch_topk_linear
from ..optim import clip_grad_norm_
from ..sparse_linear import sparse_linear
from ..threshold_linear import threshold_linear
from ..topk_linear import topk_linear

SELECTIONS = ("sample", "batch")
THRESHOLD_MOMENTUM = 0.999


class Output(NamedTuple):
    """What a forward pass gives; losses are fractions of the batch's variance around its mean.

    Attributes:
        reconstruction: (..., D), that of the K winners.
        code: TopK or Rows, the winners.
        fvu: (), squared error of the reconstruction: the fraction of variance unexplained.
        aux_loss: (), that of the dead neurons' reconstruction of the residual; 0 without dead neurons.
        multi_fvu: (), that of the reconstruction from `multi` K winners; 0 without.
        loss: (), fvu + aux_weight aux_loss + multi_weight multi_fvu.
        dead: how many neurons were dead before this batch.
    """

    reconstruction: Tensor
    code: TopK | Rows
    fvu: Tensor
    aux_loss: Tensor
    multi_fvu: Tensor
    loss: Tensor
    dead: int


class TopKAutoencoder(nn.Module):
    """x' = sum over winners of value * w_dec + b_dec, winners being the K largest of relu(W_enc (x - b_dec) + b_enc).

    In training mode a forward pass counts for how many samples each neuron has not fired, and moves the step that a
    schedule of K sees and the running threshold for inference; in eval mode it changes nothing. A neuron fires where it
    is a winner with a value > 0. Dead neurons are revived by AuxK: the aux_k largest of them reconstruct the residual,
    which is a constant there. Ties, NaN and gradients are those of `topk_linear` and `batch_topk_linear`.

    Args:
        inputs: D.
        neurons: R.
        k: K winners per sample, or a function of the step that gives K.
        selection: "sample": the K largest of each sample; "batch": the B K largest of a batch in training, and in eval
            mode what is above the running threshold, if one is known.
        multi: also reconstruct from multi K winners, found in the same pass; 1 is off. Only with "sample".
        aux_k: dead neurons that reconstruct the residual; D // 2 by default, 0 is off.
        dead_after: samples without firing after which a neuron counts as dead.
        aux_weight: of the loss.
        multi_weight: of the loss.
        scale_by_decoder_norm: winners are those of the scores times the norms of the decoder's rows, and values are
            divided by them in the decoder: the selection does not depend on the norms.
        backend: of the operations.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an argument that is not allowed.

    Source: Gao et al. 2024 (arXiv 2406.04093): Top-K, AuxK, multi-TopK; Bussmann et al. 2024 (arXiv 2412.06410): batch.

    Examples:
        >>> model = TopKAutoencoder(16, 256, 8)
        >>> model(torch.randn(32, 16)).code.indices.shape
        torch.Size([32, 8])
    """

    samples_since_fired: Tensor
    threshold: Tensor
    step: Tensor

    def __init__(
        self,
        inputs: int,
        neurons: int,
        k: int | Callable[[int], int],
        *,
        selection: Literal["sample", "batch"] = "sample",
        multi: int = 1,
        aux_k: int | None = None,
        dead_after: int = 10_000_000,
        aux_weight: float = 1 / 32,
        multi_weight: float = 1 / 8,
        scale_by_decoder_norm: bool = False,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(f"TopKAutoencoder: selection={selection!r}: allowed are {', '.join(SELECTIONS)}")
        if multi < 1 or (multi > 1 and selection == "batch"):
            raise ValueError(
                f"TopKAutoencoder: multi={multi} with selection={selection!r}: allowed is 1, or more by sample"
            )
        aux_k = inputs // 2 if aux_k is None else aux_k
        if aux_k < 0 or dead_after < 1:
            raise ValueError(f"TopKAutoencoder: aux_k={aux_k}, dead_after={dead_after}: allowed are >= 0 and >= 1")
        self.inputs, self.neurons, self.k = inputs, neurons, k
        self.selection, self.multi, self.aux_k, self.dead_after = selection, multi, aux_k, dead_after
        self.aux_weight, self.multi_weight = aux_weight, multi_weight
        self.scale_by_decoder_norm, self.backend = scale_by_decoder_norm, backend
        self.encoder = nn.Linear(inputs, neurons, device=device, dtype=dtype)
        self.W_dec = nn.Parameter(torch.empty(neurons, inputs, device=device, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(inputs, device=device, dtype=dtype))
        self.register_buffer("samples_since_fired", torch.zeros(neurons, dtype=torch.int64, device=device))
        self.register_buffer("threshold", torch.tensor(-1.0, device=device))  # not known yet
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.client_state: dict[str, Tensor] = {}  # what a converted client holds beside this model's state
        self.reset_parameters()
        self.winners()  # refuses a K that is none

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random directions as decoder rows, the encoder their copy, biases 0."""
        nn.init.normal_(self.W_dec)
        self.normalise_decoder_()
        self.encoder.weight.copy_(self.W_dec)
        self.encoder.bias.zero_()
        self.b_dec.zero_()

    def winners(self) -> int:
        """K at this step."""
        k = int(self.k(int(self.step))) if callable(self.k) else self.k
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k * self.multi <= self.neurons:
            raise ValueError(
                f"TopKAutoencoder: k={k} with multi={self.multi} at step {int(self.step)}: allowed are whole numbers "
                f"with 1 <= multi k <= R = {self.neurons}"
            )
        return k

    def decoder_norms(self) -> Tensor | None:
        """(R,) where the selection is scaled by them."""
        return torch.linalg.vector_norm(self.W_dec, dim=1) if self.scale_by_decoder_norm else None

    def encode(self, x: Tensor, k: int | None = None) -> TopK | Rows:
        """The winners of (..., D): K of each sample; with selection="batch" of the batch, or above the threshold."""
        k, scale = self.winners() if k is None else k, self.decoder_norms()
        x, weight, bias, backend = x - self.b_dec, self.encoder.weight, self.encoder.bias, self.backend
        if self.selection == "sample":
            return topk_linear(x, weight, k, bias, scale=scale, backend=backend)
        if not self.training and self.threshold >= 0:
            return threshold_linear(x, weight, float(self.threshold), bias, scale=scale, backend=backend)
        return batch_topk_linear(x, weight, k, bias, scale=scale, backend=backend)

    def decode(self, code: TopK | Rows) -> Tensor:
        """(..., D); (B, D) for Rows."""
        return self._directions(code) + self.b_dec

    def _directions(self, code: TopK | Rows) -> Tensor:
        """The decoder's product with a code, without its bias."""
        norms = self.decoder_norms()
        if norms is not None:
            code = code._replace(values=code.values / norms[code.indices.long()])
        return sparse_linear(code, self.W_dec.t(), backend=self.backend)

    def forward(self, x: Tensor) -> Output:
        """Reconstructs (..., D) and evaluates the loss."""
        lead, x = x.shape, x.reshape(-1, self.inputs)
        k, multi = self.winners(), None
        code = self.encode(x, k * self.multi)
        if self.multi > 1:  # the first K of more winners are the Top-K, bitwise
            multi = code
            code = TopK(code.values[:, :k], code.indices[:, :k], code.values[:, k].detach())
        reconstruction = self.decode(code)
        residual = x - reconstruction
        variance = (x - x.mean(0)).square().sum()
        fvu = residual.square().sum() / variance
        zero = fvu.new_zeros(())
        multi_fvu = zero if multi is None else (x - self.decode(multi)).square().sum() / variance
        dead = self.dead_neurons()
        aux_loss = self._revival(x, residual.detach(), dead) / variance if len(dead) and self.aux_k else zero
        if self.training:
            self._count(code, len(x))
        loss = fvu + self.aux_weight * aux_loss + self.multi_weight * multi_fvu
        return Output(reconstruction.reshape(lead), code, fvu, aux_loss, multi_fvu, loss, len(dead))

    def dead_neurons(self) -> Tensor:
        """(n,) int64: those that have not fired for dead_after samples. Waits for a GPU."""
        return (self.samples_since_fired >= self.dead_after).nonzero().flatten()

    def _revival(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """The squared error of the residual's reconstruction by dead neurons, less where they are few."""
        top = topk_linear(
            x - self.b_dec, self.encoder.weight, min(self.aux_k, len(dead)), self.encoder.bias, rows=dead,
            scale=self.decoder_norms(), backend=self.backend,
        )  # fmt: skip
        return min(len(dead) / self.aux_k, 1.0) * (self._directions(top) - residual).square().sum()

    @torch.no_grad()
    def _count(self, code: TopK | Rows, samples: int) -> None:
        fired = code.indices[code.values > 0].long()
        self.samples_since_fired += samples
        self.samples_since_fired[fired] = 0
        self.step += 1
        positive = torch.where(code.values > 0, code.values, torch.inf)
        least = positive.amin(-1).mean() if isinstance(code, TopK) else positive.amin() if len(positive) else None
        if least is None or not torch.isfinite(least):
            return
        momentum = THRESHOLD_MOMENTUM if self.threshold >= 0 else 0.0
        self.threshold.mul_(momentum).add_((1 - momentum) * least.to(self.threshold.dtype))

    @torch.no_grad()
    def normalise_decoder_(self) -> None:
        """Gives the decoder's rows unit norm: after every step of an optimizer."""
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def project_decoder_gradient_(self) -> None:
        """Takes out of the decoder's gradient what would only change norms: before a step, where they are 1."""
        grad = self.W_dec.grad
        if grad is not None:
            along = (grad * self.W_dec).sum(1, keepdim=True)
            grad.addcmul_(along, self.W_dec, value=-1)

    def training_step(self, x: Tensor, optimizer: torch.optim.Optimizer, max_norm: float = 1.0) -> Output:
        """One whole step: loss, gradients, projection, clipping, the optimizer, unit norms; gradients are freed."""
        output = self(x)
        output.loss.backward()
        if not self.scale_by_decoder_norm:
            self.project_decoder_gradient_()
        clip_grad_norm_(self.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        if not self.scale_by_decoder_norm:
            self.normalise_decoder_()
        return output

    def extra_repr(self) -> str:
        k = "a schedule" if callable(self.k) else self.k
        return f"inputs={self.inputs}, neurons={self.neurons}, k={k}, selection={self.selection!r}, multi={self.multi}"
