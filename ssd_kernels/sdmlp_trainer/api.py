"""SDMLPEngine: an SDMLP with one hidden layer, trained by SGD an epoch per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _backend, _checks
from .._types import Backend, Divergence, Scan
from . import checks
from .native import NativeTrainer
from .reference import ReferenceTrainer
from .types import EpochStats, QuadraticPenalty, Settings, Share, Teacher

_OP = "sdmlp_trainer"


class SDMLPEngine:
    """Trains y = V h, h = relu(a - g I), a = relu(W x), with SGD and the projection, touching only what can change.

    The loss is CE, or with a teacher alpha CE + (1 - alpha) [lam KD_hidden + (1 - lam) KD_logits] (arXiv 2512.15267,
    Eq. 4 to 6). After every step W and V are clamped at 0 from below and the touched rows of W divided by their norm.
    `scan="auto"` proves most winners without scoring every neuron; weights, counts and losses are bitwise those of
    `scan="exhaustive"`, for any number of threads.

    Args:
        weight: (R, D) float32, contiguous; not negative, rows of norm 1 (or 0). Updated in place.
        output_weight: (C, R) float32, contiguous; not negative. Updated in place.
        counts: (R,) int64, contiguous, 0 or more: how often each neuron was active in training. Updated in place.
        k: K; K + 1 <= R.
        gaba_switch: S in g_j = clip(-1 + 2 c_j / S, -1, 1); None means g = 1.
        lr: learning rate.
        momentum: of SGD, after clipping; 0 means none.
        max_grad_norm: the gradient of both layers together is clipped to this L2 norm; infinity means no clipping.
        alpha: weight of the cross-entropy in the SSD loss.
        lam: weight of the hidden units within its distillation.
        temperature: T of its distillation.
        kl: "forward" is KL(teacher || student), "reverse" the other.
        backend: "auto", "cpu", "reference" (plain torch; any float dtype) or "triton": tensors on a GPU, an epoch as
            CUDA graphs; it scores every neuron, and scan, threads and cache_mb mean nothing to it; or "cuda", likewise
            in CUDA C++, not yet run on a GPU.
        scan: "auto", or "exhaustive" to score every neuron for every row.
        threads: number of threads; None means torch.get_num_threads() at each call.
        cache_mb: bound of the candidate lists in MiB; samples beyond it are scanned.
        share: this process's part where several train one model; then backend is "cpu", and by neurons weight,
            output_weight, counts, a penalty and frequencies are those of the neurons here. Weights, counts and losses
            are bitwise those of one process.

    Raises:
        ValueError: an argument is out of range, or the backend cannot run here.

    Examples:
        >>> x, y = normalize_inputs(torch.rand(64, 16)), torch.randint(10, (64,))
        >>> weight, counts = normalize_inputs(torch.rand(100, 16)), torch.zeros(100, dtype=torch.int64)
        >>> engine = SDMLPEngine(weight, torch.rand(10, 100), counts, k=10, gaba_switch=2e5)
        >>> engine.train_epoch(x, y, torch.randperm(64), batch_size=32).steps
        2
    """

    def __init__(
        self,
        weight: Tensor,
        output_weight: Tensor,
        counts: Tensor,
        *,
        k: int,
        gaba_switch: float | None,
        lr: float = 0.05,
        momentum: float = 0.0,
        max_grad_norm: float = 1.0,
        alpha: float = 0.7,
        lam: float = 0.1,
        temperature: float = 8.0,
        kl: Divergence = "forward",
        backend: Backend = "auto",
        scan: Scan = "auto",
        threads: int | None = None,
        cache_mb: int = 1024,
        share: Share | None = None,
    ) -> None:
        for name, tensor in (("weight", weight), ("output_weight", output_weight)):
            _checks.dense(name, tensor)
        _checks.integers("counts", counts, torch.int64, "(R,)")
        self.backend = _backend.resolve(backend, _OP, weight.device)
        self.weight, self.output_weight, self.counts = weight, output_weight, counts
        self.settings = Settings(k, gaba_switch, lr, momentum, max_grad_norm, alpha, lam, temperature, kl)
        checks.model(weight, output_weight, counts, any_float=self.backend == "reference")
        checks.settings(self.settings, weight.shape[0], scan, threads, cache_mb)
        self._neurons = weight.shape[0]  # of all processes
        if share is not None:
            checks.share(share, self.backend, self._neurons)
            self._neurons = share.neurons
        self._checker = checks.Checker(weight, output_weight, self._neurons)
        self.last_stats: EpochStats | None = None
        if self.backend == "reference":
            self._trainer: Any = ReferenceTrainer(weight, output_weight, counts, self.settings)
        elif self.backend == "triton":
            from .triton_trainer import TritonTrainer

            self._trainer = TritonTrainer(weight, output_weight, counts, self.settings)
        elif self.backend == "cuda":
            from .cuda import CudaTrainer

            self._trainer = CudaTrainer(weight, output_weight, counts, self.settings)
        else:
            self._trainer = NativeTrainer(
                weight,
                output_weight,
                counts,
                self.settings,
                exhaustive=scan == "exhaustive",
                threads=threads,
                cache_mb=cache_mb,
                share=share,
            )

    @torch.no_grad()
    def train_epoch(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int = 128,
        teacher: Teacher | None = None,
        penalty: QuadraticPenalty | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> EpochStats:
        """Takes one SGD step per batch of `order`; the last, smaller batch is kept.

        Args:
            x: (N, D) float32 samples that have been through normalize_inputs.
            y: (N,) int64 labels in [0, C).
            order: (any length,) int64 samples in the order of training; repeats are allowed.
            batch_size: B.
            teacher: from make_teacher on this same x; None means plain cross-entropy.
            penalty: a quadratic penalty on both layers.
            should_stop: asked at step boundaries at least every 0.2 s; True ends the call early.

        Returns:
            Statistics of the steps done. A signal handler that raises ends the call at a step boundary too: the
            exception goes on to the caller, and `last_stats` tells how many steps were done.

        Raises:
            ValueError: shapes, dtypes, labels, order, inputs, teacher or penalty that do not fit or are not finite;
                nothing has changed.
            NonFiniteStep: a score, a loss or the gradient's norm is NaN or infinite. That step was not taken, the
                steps before it are kept, and `last_stats` tells of them.
        """
        self._checker.samples(x)
        self._checker.epoch(x, y, order, batch_size)
        if teacher is not None:
            self._checker.teacher(teacher, len(x))
        if penalty is not None:
            self._checker.penalty(penalty)
        batch_size = min(batch_size, max(len(order), 1))
        stats, error = self._trainer.train(x, y, order, batch_size, teacher, penalty, should_stop)
        self.last_stats = stats
        if error is not None:
            raise error
        return stats

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """y = V h for (N, D) samples, without counting activations; (N, C)."""
        self._checker.samples(x)
        return self._trainer.infer(x)[0]

    @torch.no_grad()
    def frequencies(self, x: Tensor) -> Tensor:
        """n_j, the number of samples with h_j > 0, without counting them; (R,) int64."""
        self._checker.samples(x)
        return self._trainer.infer(x)[1]

    @torch.no_grad()
    def make_teacher(self, x: Tensor, units: Tensor) -> Teacher:
        """Evaluates the present model, as the frozen teacher, once on the next task's samples.

        Args:
            x: (N, D) float32, the samples that train_epoch will be given.
            units: (n,) int64, the selected neurons: top_n of the frequencies on the previous task's samples.

        Returns:
            The teacher's logits and its non-zero activations on `units`.
        """
        self._checker.samples(x)
        units = torch.unique(units.to(torch.int64))
        if len(units) == 0 or units[0] < 0 or units[-1] >= self._neurons:
            raise ValueError(f"units must be distinct neurons in [0, {self._neurons}), got {units.tolist()[:8]}")
        logits, _, (values, indices, offsets) = self._trainer.infer(x, units)
        return Teacher(logits, units, values, indices, offsets)

    def invalidate(self) -> None:
        """Declares that weights, counts or samples were changed by other means than torch operations."""
        if isinstance(self._trainer, NativeTrainer):
            self._trainer.invalidate()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of weight, output_weight, counts and, with momentum, both velocities."""
        state = {"weight": self.weight, "output_weight": self.output_weight, "counts": self.counts}
        velocity = self._velocity()
        if velocity is not None:
            state |= {"weight_velocity": velocity[0], "output_velocity": velocity[1]}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies a state_dict of the same shapes into the caller's tensors.

        Raises:
            ValueError: keys are missing or unknown, a shape differs, a number is not finite or no projected model's;
                nothing has changed.
        """
        own = {"weight": self.weight, "output_weight": self.output_weight, "counts": self.counts}
        velocity = self._velocity()
        if velocity is not None:
            own |= {"weight_velocity": velocity[0], "output_velocity": velocity[1]}
        checks.state(state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if velocity is not None and isinstance(self._trainer, NativeTrainer):
            self._trainer.set_velocity(velocity)
        self.invalidate()

    def _velocity(self) -> tuple[Tensor, Tensor] | None:
        trainer = self._trainer
        return trainer.velocity if isinstance(trainer, ReferenceTrainer) else trainer.velocity()
