"""SDMLPEngine: an SDMLP with one hidden layer, trained by SGD an epoch per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from .native import NativeTrainer
from .reference import ReferenceTrainer
from .types import EpochStats, QuadraticPenalty, Settings, Teacher

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
        counts: (R,) int64, contiguous: how often each neuron was active in training. Updated in place.
        k: K; K + 1 <= R.
        gaba_switch: S in g_j = clip(-1 + 2 c_j / S, -1, 1); None means g = 1.
        lr: learning rate.
        momentum: of SGD, after clipping; 0 means none.
        max_grad_norm: the gradient of both layers together is clipped to this L2 norm.
        alpha, lam, temperature: weights and temperature of the SSD loss.
        kl: "forward" is KL(teacher || student), "reverse" the other.
        backend: "auto", "cpu", "reference" (plain torch; any float dtype) or "triton": tensors on a GPU, an epoch as
            CUDA graphs; it scores every neuron, and scan, threads and cache_mb mean nothing to it.
        scan: "auto", or "exhaustive" to score every neuron for every row.
        threads: number of threads; None means torch.get_num_threads() at each call.
        cache_mb: bound of the candidate lists in MiB; samples beyond it are scanned.

    Raises:
        ValueError: an argument is out of range, or the backend cannot run here.

    Example:
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
        kl: str = "forward",
        backend: str = "auto",
        scan: str = "auto",
        threads: int | None = None,
        cache_mb: int = 1024,
    ) -> None:
        self.backend = _backend.resolve(backend, _OP, weight.device)
        self.weight, self.output_weight, self.counts = weight, output_weight, counts
        self.settings = Settings(k, gaba_switch, lr, momentum, max_grad_norm, alpha, lam, temperature, kl)
        self._check_settings(scan, threads, cache_mb)
        self._check_model()
        self.last_stats: EpochStats | None = None
        if self.backend == "reference":
            self._trainer: Any = ReferenceTrainer(weight, output_weight, counts, self.settings)
        elif self.backend == "triton":
            from .triton_trainer import TritonTrainer

            self._trainer = TritonTrainer(weight, output_weight, counts, self.settings)
        else:
            self._trainer = NativeTrainer(
                weight,
                output_weight,
                counts,
                self.settings,
                exhaustive=scan == "exhaustive",
                threads=threads,
                cache_mb=cache_mb,
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
            ValueError: shapes, dtypes, labels, order or inputs out of range.
            FloatingPointError: a score became NaN or infinite; `last_stats` tells the step.
        """
        self._check_samples(x)
        self._check_epoch(x, y, order, batch_size, teacher, penalty)
        result = self._trainer.train(x, y, order, batch_size, teacher, penalty, should_stop)
        stats, error = result if isinstance(result, tuple) else (result, None)
        self.last_stats = stats
        if error is not None:
            raise error
        return stats

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """y = V h for (N, D) samples, without counting activations; (N, C)."""
        self._check_samples(x)
        return self._trainer.infer(x)[0]

    @torch.no_grad()
    def frequencies(self, x: Tensor) -> Tensor:
        """n_j, the number of samples with h_j > 0, without counting them; (R,) int64."""
        self._check_samples(x)
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
        self._check_samples(x)
        units = torch.unique(units.to(torch.int64))
        if len(units) == 0 or units[0] < 0 or units[-1] >= len(self.counts):
            raise ValueError(f"units must be distinct neurons in [0, {len(self.counts)}), got {units.tolist()[:8]}")
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
            ValueError: keys are missing or unknown, or a shape differs.
        """
        own = {"weight": self.weight, "output_weight": self.output_weight, "counts": self.counts}
        velocity = self._velocity()
        if velocity is not None:
            own |= {"weight_velocity": velocity[0], "output_velocity": velocity[1]}
        if own.keys() != state.keys():
            raise ValueError(f"state has keys {sorted(state)}, expected {sorted(own)}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if velocity is not None and isinstance(self._trainer, NativeTrainer):
            self._trainer.set_velocity(velocity)
        self.invalidate()

    def _velocity(self) -> tuple[Tensor, Tensor] | None:
        trainer = self._trainer
        return trainer.velocity if isinstance(trainer, ReferenceTrainer) else trainer.velocity()

    def _check_settings(self, scan: str, threads: int | None, cache_mb: int) -> None:
        s = self.settings
        neurons = self.weight.shape[0]
        rules = (
            ("k", s.k, 1 <= s.k < neurons, f"1 to R - 1 = {neurons - 1}"),
            ("gaba_switch", s.gaba_switch, s.gaba_switch is None or s.gaba_switch > 0, "None or a positive number"),
            ("lr", s.lr, s.lr > 0, "a positive number"),
            ("momentum", s.momentum, 0 <= s.momentum < 1, "0 <= momentum < 1"),
            ("max_grad_norm", s.max_grad_norm, s.max_grad_norm > 0, "a positive number"),
            ("alpha", s.alpha, 0 <= s.alpha <= 1, "0 to 1"),
            ("lam", s.lam, 0 <= s.lam <= 1, "0 to 1"),
            ("temperature", s.temperature, s.temperature > 0, "a positive number"),
            ("kl", s.kl, s.kl in ("forward", "reverse"), "'forward' or 'reverse'"),
            ("scan", scan, scan in ("auto", "exhaustive"), "'auto' or 'exhaustive'"),
            ("threads", threads, threads is None or threads >= 1, "None or a positive integer"),
            ("cache_mb", cache_mb, cache_mb >= 0, "0 or more"),
        )
        for name, value, good, allowed in rules:
            if not good:
                raise ValueError(f"{name}={value!r}: allowed is {allowed}")

    def _check_model(self) -> None:
        weight, output_weight, counts = self.weight, self.output_weight, self.counts
        if weight.dim() != 2 or output_weight.dim() != 2 or output_weight.shape[1] != weight.shape[0]:
            raise ValueError(
                f"weight must be (R, D) and output_weight (C, R), got {tuple(weight.shape)} and "
                f"{tuple(output_weight.shape)}"
            )
        if counts.shape != (weight.shape[0],) or counts.dtype != torch.int64:
            raise ValueError(f"counts must be ({weight.shape[0]},) int64, got {tuple(counts.shape)} {counts.dtype}")
        if self.backend != "reference":
            for name, tensor in (("weight", weight), ("output_weight", output_weight)):
                if tensor.dtype != torch.float32:
                    raise ValueError(f"{name} must be float32, got {tensor.dtype}")
        for name, tensor in (("weight", weight), ("output_weight", output_weight), ("counts", counts)):
            if not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous")
            self._check_device(name, tensor)
        with torch.no_grad():
            for name, tensor in (("weight", weight), ("output_weight", output_weight)):
                if not (tensor >= 0).all():
                    raise ValueError(f"{name} must not be negative or NaN: apply the projection first")
            norm = torch.linalg.vector_norm(weight, dim=1)
            if not ((norm - 1).abs() <= 1e-3).logical_or(norm == 0).all():
                raise ValueError("the rows of weight must have norm 1 (or 0): apply the projection first")

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.weight.device:
            raise ValueError(f"{name} must be on {self.weight.device}, as weight is, got {tensor.device}")

    def _check_samples(self, x: Tensor) -> None:
        self._check_device("x", x)
        if x.dim() != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(f"x must be (N, {self.weight.shape[1]}), got {tuple(x.shape)}")
        if x.dtype != self.weight.dtype or not x.is_contiguous():
            raise ValueError(f"x must be contiguous {self.weight.dtype}, got {x.dtype}")
        if getattr(self, "_checked", None) == (id(x), x._version):
            return
        norm = torch.linalg.vector_norm(x, dim=1)
        if not ((x >= 0).all() and ((norm - 1).abs() <= 1e-4).logical_or(norm == 0).all()):
            raise ValueError("x must be finite, not negative and of unit norm per row: use normalize_inputs")
        self._checked, self._checked_x = (id(x), x._version), x

    def _check_epoch(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
    ) -> None:
        if y.shape != (x.shape[0],) or y.dtype != torch.int64 or not y.is_contiguous():
            raise ValueError(f"y must be contiguous ({x.shape[0]},) int64, got {tuple(y.shape)} {y.dtype}")
        self._check_device("y", y)
        classes = self.output_weight.shape[0]
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
            raise ValueError(f"y must be in [0, {classes}), got {int(y.min())} to {int(y.max())}")
        if order.dim() != 1 or order.dtype != torch.int64 or not order.is_contiguous():
            raise ValueError(f"order must be contiguous (count,) int64, got {tuple(order.shape)} {order.dtype}")
        if len(order) and not (int(order.min()) >= 0 and int(order.max()) < len(x)):
            raise ValueError(f"order must be in [0, {len(x)}), got {int(order.min())} to {int(order.max())}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: allowed is 1 or more")
        if teacher is not None and len(teacher.logits) != len(x):
            raise ValueError(f"teacher was made for {len(teacher.logits)} samples, x has {len(x)}")
        if teacher is not None:
            self._check_device("teacher", teacher.logits)
        if penalty is not None:
            if not penalty.coef >= 0:
                raise ValueError(f"penalty.coef={penalty.coef}: allowed is 0 or more")
            for name, like in (("weight", self.weight), ("output", self.output_weight)):
                for part in ("importance", "anchor"):
                    tensor = getattr(penalty, f"{name}_{part}")
                    if tensor.shape != like.shape or tensor.dtype != like.dtype or not tensor.is_contiguous():
                        raise ValueError(f"penalty.{name}_{part} must be contiguous {tuple(like.shape)} {like.dtype}")
                    self._check_device(f"penalty.{name}_{part}", tensor)
