"""The native CPU trainer behind the engine: pointers in, statistics out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _native
from .teacher import softened
from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Settings, Share, Teacher


class NativeTrainer:
    """Owns the C++ trainer and keeps alive every tensor whose address it holds."""

    def __init__(
        self,
        weight: Tensor,
        output_weight: Tensor,
        counts: Tensor,
        settings: Settings,
        *,
        exhaustive: bool,
        threads: int | None,
        cache_mb: int,
        share: Share | None = None,
    ) -> None:
        module, reason = _native.cpu_module()
        if module is None:
            raise ValueError(f"the native CPU module is not loaded ({reason})")
        self.weight, self.output_weight, self.counts = weight, output_weight, counts
        self.settings, self._threads, self._share = settings, threads, share
        by_neurons = share is not None and share.by == "neurons"
        self._first = share.first if by_neurons else 0
        self._neurons = share.neurons if by_neurons else weight.shape[0]  # of all processes
        part = () if share is None else (share.gather, share.rank, share.size, by_neurons, self._first, self._neurons)
        self._trainer = module.SdmlpTrainer(
            weight=weight.data_ptr(),
            output_weight=output_weight.data_ptr(),
            counts=counts.data_ptr(),
            neurons=weight.shape[0],
            inputs=weight.shape[1],
            classes=output_weight.shape[0],
            k=settings.k,
            gaba_switch=0.0 if settings.gaba_switch is None else float(settings.gaba_switch),
            lr=settings.lr,
            momentum=settings.momentum,
            max_grad_norm=settings.max_grad_norm,
            alpha=settings.alpha,
            lam=settings.lam,
            temperature=settings.temperature,
            reverse_kl=settings.kl == "reverse",
            exhaustive=exhaustive,
            cache_bytes=cache_mb << 20,
            simd=_native.simd_level(),
            share=part,
        )
        self._x: Tensor | None = None
        self._versions: tuple[int, ...] = ()
        # The teacher, the versions of its tensors, and what was made of it.
        self._prepared: tuple[Teacher, tuple[int, ...], tuple[Tensor, ...]] | None = None
        self._remember(None)

    def threads(self) -> int:
        return torch.get_num_threads() if self._threads is None else self._threads

    def invalidate(self) -> None:
        """Reads the caller's tensors again, and forgets what was proved about them."""
        self._trainer.invalidate()
        self._remember(None)

    def _remember(self, x: Tensor | None) -> None:
        self._x = x
        tensors = (self.weight, self.output_weight, self.counts, *(() if x is None else (x,)))
        self._versions = tuple(tensor._version for tensor in tensors)

    def _remember_change(self) -> None:
        """Counts a change of the caller's tensors, before it happens: a call that fails may have made half of it."""
        for tensor in (self.weight, self.output_weight, self.counts):
            torch.autograd.graph.increment_version(tensor)

    def _check_unchanged(self, x: Tensor | None) -> None:
        """Version counters tell of changes by torch since the last call; other samples need other records."""
        tensors = (self.weight, self.output_weight, self.counts, *(() if self._x is None else (self._x,)))
        changed = tuple(tensor._version for tensor in tensors) != self._versions
        if changed or (x is not None and self._x is not None and x is not self._x):
            self._trainer.invalidate()
            self._remember(None)

    def infer(self, x: Tensor, units: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits (N, C), frequencies (R,), and the activations of `units` as values, indices, offsets."""
        self._check_unchanged(None)
        share = self._share
        if share is None or share.by == "neurons":
            return self._infer(x, units)
        here = x[len(x) * share.rank // share.size : len(x) * (share.rank + 1) // share.size]
        logits, frequencies, (values, indices, offsets) = self._infer(here, units)

        def gathered(own: Tensor) -> list[Tensor]:
            parts = share.gather(own.numpy().tobytes())
            return [torch.frombuffer(bytearray(p), dtype=own.dtype) if p else own.new_empty(0) for p in parts]

        logits = torch.cat(gathered(logits)).view(len(x), -1)
        frequencies = torch.stack(gathered(frequencies)).sum(0)
        lengths = torch.cat(gathered(offsets.diff()))
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:] if units is not None else offsets[:0])
        return logits, frequencies, (torch.cat(gathered(values)), torch.cat(gathered(indices)), offsets)

    def _infer(self, x: Tensor, units: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        logits = torch.empty(x.shape[0], self.output_weight.shape[0])
        frequencies = torch.zeros(self.weight.shape[0], dtype=torch.int64)
        keep = None
        if units is not None:
            keep = torch.zeros(self._neurons, dtype=torch.uint8)
            keep[units] = 1
        finite, offsets, indices, values = self._trainer.infer(
            x=x.data_ptr(),
            samples=x.shape[0],
            threads=self.threads(),
            logits=logits.data_ptr(),
            frequencies=frequencies.data_ptr(),
            keep=0 if keep is None else keep.data_ptr(),
        )
        if not finite:
            raise FloatingPointError("a score is not finite")
        return logits, frequencies, tuple(torch.from_numpy(array) for array in (values, indices, offsets))

    def train(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[EpochStats, BaseException | None]:
        self._check_unchanged(x)
        teacher_tensors, units = self._prepare(teacher)
        self._remember_change()
        fields, failure, error = self._trainer.train(
            x=x.data_ptr(),
            y=y.data_ptr(),
            samples=x.shape[0],
            order=order.data_ptr(),
            count=order.shape[0],
            batch=batch_size,
            teacher=()
            if teacher is None
            else (
                *(tensor.data_ptr() for tensor in teacher_tensors[:3]),
                units,
                *(tensor.data_ptr() for tensor in teacher_tensors[3:]),
            ),
            penalty=()
            if penalty is None
            else (
                penalty.weight_importance.data_ptr(),
                penalty.weight_anchor.data_ptr(),
                penalty.output_importance.data_ptr(),
                penalty.output_anchor.data_ptr(),
                float(penalty.coef),
            ),
            threads=self.threads(),
            should_stop=should_stop,
        )
        self._remember(x)
        stats = EpochStats(**fields)
        if failure is not None:
            what, sample, neuron = failure
            error = NonFiniteStep(what, stats.steps, sample if sample >= 0 else None, neuron if neuron >= 0 else None)
        return stats, error

    def _prepare(self, teacher: Teacher | None) -> tuple[tuple[Tensor, ...], int]:
        """The teacher's softened outputs and normalisers in float64, once per teacher."""
        if teacher is None:
            return (), 0
        parts = (teacher.logits, teacher.units, teacher.values, teacher.indices, teacher.offsets)
        versions = tuple(tensor._version for tensor in parts)
        if self._prepared is None or self._prepared[0] is not teacher or self._prepared[1] != versions:
            soft = softened(teacher, self.settings.temperature, self.settings.kl == "reverse", self._neurons)
            soft["in_units"] = soft["in_units"][self._first :]  # the trainer counts neurons from the first one here
            soft["indices"] = (soft["indices"] - self._first).contiguous()
            tensors = tuple(soft.values())
            self._prepared = (teacher, versions, tensors)
        return self._prepared[2], len(teacher.units)

    def velocity(self) -> tuple[Tensor, Tensor] | None:
        """Copies of the momentum buffers, (R, D) and (C, R); None without momentum."""
        if not self.settings.momentum:
            return None
        velocity = torch.empty_like(self.weight), torch.empty_like(self.output_weight)
        self._trainer.get_velocity(*(tensor.data_ptr() for tensor in velocity))
        return velocity

    def set_velocity(self, velocity: tuple[Tensor, Tensor]) -> None:
        """Replaces the momentum buffers, which have the shapes of the weights."""
        weight, output = (tensor.float().contiguous() for tensor in velocity)
        self._trainer.set_velocity(weight.data_ptr(), output.data_ptr())
