"""What runs an epoch: one differentiable operation at a time (`autograd`), or one native call (`fused`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ssd_kernels
from ssd_kernels import NonFiniteStep
from ssd_kernels._backend import missing_reason

from .config import TrainConfig
from .distill import Answers, answers
from .errors import BadInput
from .methods import Batch, Method, TaskContext
from .model import SDMLP, Network, activity, predict
from .records import ROW_KINDS, EpochSums, Progress

MANY_ACTIVE = 64  # active neurons per row from which the engine's steps keep no lists of them
PART_NAMES = {"ce": "cross-entropy", "kd_hidden": "hidden distillation", "kd_logits": "logit distillation"}
LONGEST_STEP = 1e38  # beyond it a weight may leave float32


def stopped(method: Method, progress: Progress, error: NonFiniteStep) -> BadInput:
    """What the user is told of a step that was not taken, with the option that most likely helps."""
    change, option, own = "smaller", "lr", method.options
    if "distillation" in error.what and hasattr(own, "temperature"):
        change, option = "larger" if own.temperature < 1 else "smaller", "temperature"
    elif "penalty" in error.what and hasattr(own, "coef"):
        option = "coef"
    value = getattr(method.config if option == "lr" else own, option)
    now = "" if value is None else f" (it is {value})"
    return BadInput(
        f"training: {error}; task {progress.stage}, epoch {progress.epoch}; try a {change} --{option}{now}"
    )


class AutogradEngine:
    """Forward, backward, clip, SGD and projection through the public operations of ssd_kernels.

    With plain SGD and no penalty only rows with a gradient move, so only those are updated and projected; that is the
    dense step up to rounding. Otherwise all rows are.
    """

    name = "autograd"

    def __init__(self, context: TaskContext, method: Method, progress: Progress) -> None:
        self.context, self.config, self.progress = context, context.config, progress
        self.model, self.method = context.model, method
        self.names, self.parameters = map(list, zip(*self.model.named_parameters()))
        sparse = self.model.kind == "sdmlp" and self.config.momentum == 0 and not self.method.touches_all_rows
        self.step = self._step_touched_rows if sparse else self._step_all_rows
        self.reports_steps = type(self.method).before_projection is not Method.before_projection
        self.scale = 1.0  # of the present step's gradient
        self.velocity: list[Tensor] = []
        if self.config.momentum:
            self.velocity = [torch.zeros_like(p) for p in self.parameters]
        self.model.sparse_grad = sparse

    def train_epoch(self, order: Tensor, sums: EpochSums, interrupted: Callable[[], bool]) -> int:
        """Trains on the task's rows in `order`; stops early when interrupted. Returns how many rows were used."""
        context, used = self.context, 0
        for rows in order.split(self.config.batch_size):
            if interrupted():
                break
            loss = self.method.loss(self.model, Batch(context.x[rows], context.y[rows], rows))
            total = loss.total.item()
            try:
                if not math.isfinite(total):
                    bad = next((name for name, value in loss.parts.items() if not math.isfinite(value.item())), "loss")
                    raise NonFiniteStep(PART_NAMES.get(bad, bad), used // self.config.batch_size)
                loss.total.backward()
                self._check_gradients(used // self.config.batch_size)
            except NonFiniteStep as error:
                raise stopped(self.method, self.progress, error) from None
            self.step()
            self.model.count(loss.output.hidden)
            self.method.after_step(context)
            used += len(rows)
            sums.samples += len(rows)
            sums.add("loss", total, len(rows))
            for name, value in loss.parts.items():
                sums.add(name, float(value), len(rows))
            sums.rows["scanned"] += len(rows)
        return used

    def predict(self, x: Tensor) -> Tensor:
        return predict(self.model, x)

    def activity(self, x: Tensor) -> list[Tensor]:
        return activity(self.model, x)

    def make_teacher(self, model: Network, units: list[Tensor], x: Tensor) -> Answers:
        return answers(model, units, x)

    @torch.no_grad()
    def _check_gradients(self, step: int) -> None:
        """Takes the global norm, summed in fp64, as self.scale = min(1, max / (norm + 1e-6)); 1 without clipping.

        Raises:
            NonFiniteStep: a gradient's norm, or the learning rate times the whole norm, is not finite.
        """
        squares = 0.0
        for name, parameter in zip(self.names, self.parameters):
            gradient = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
            if not math.isfinite(norm):
                raise NonFiniteStep(f"gradient of {name}", step)
            squares += norm**2
        limit = self.config.max_grad_norm
        self.scale = 1.0 if limit is None else min(1.0, limit / (squares**0.5 + 1e-6))
        if not self.config.lr * self.scale * squares**0.5 <= LONGEST_STEP:
            raise NonFiniteStep("learning rate times the gradient", step)

    @torch.no_grad()
    def _step_touched_rows(self) -> None:
        model = self.model
        touched = [weight.grad for weight in model.weights]
        output = model.output_weight
        scale = self.scale
        for weight, grad in zip(model.weights, touched):
            ssd_kernels.sparse_update_(
                weight, grad._indices()[0], grad._values(), lr=self.config.lr, scale=scale, backend=self.config.backend
            )
            weight.grad = None
        output.sub_(output.grad, alpha=self.config.lr * scale).clamp_(min=0)
        output.grad = None

    @torch.no_grad()
    def _step_all_rows(self) -> None:
        gradients = [p.grad for p in self.parameters]
        scale = self.scale
        steps: dict[str, Tensor] = {}
        for i, (parameter, grad) in enumerate(zip(self.parameters, gradients)):
            if scale != 1.0:
                grad = grad * scale
            if self.velocity:
                grad = self.velocity[i].mul_(self.config.momentum).add_(grad)
            if self.reports_steps:
                steps[self.names[i]] = grad * -self.config.lr
            parameter.add_(grad, alpha=-self.config.lr)
            parameter.grad = None
        if self.reports_steps:
            self.method.before_projection(steps)
        self.model.project()

    def tensors(self) -> dict[str, Tensor]:
        return {f"velocity{i}": v for i, v in enumerate(self.velocity)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for i, velocity in enumerate(self.velocity):
            velocity.copy_(tensors[f"velocity{i}"])


class FusedEngine:
    """`ssd_kernels.SDMLPEngine`: one native call trains an epoch, on the model's own tensors."""

    name = "fused"

    def __init__(self, context: TaskContext, method: Method, progress: Progress) -> None:
        self.context, self.config, self.method, self.progress = context, context.config, method, progress
        try:
            self.native = self._on(context.model)
        except ValueError as error:
            raise BadInput(f"the fused engine: {error}") from None

    def _on(self, model: SDMLP) -> ssd_kernels.SDMLPEngine:
        """The native engine on a model's own tensors."""
        config, parts = self.config, self.context.parts
        backend = config.backend if parts.group is None or config.backend != "auto" else "cpu"
        return ssd_kernels.SDMLPEngine(
            model.weights[0].data, model.output_weight.data, model.counts[0], k=model.k,
            gaba_switch=model.gaba_switch, lr=config.lr, momentum=config.momentum, max_grad_norm=config.max_grad_norm,
            backend=backend, share=parts.share(config.neurons), **self.method.fused_settings(),
        )  # fmt: skip

    def train_epoch(self, order: Tensor, sums: EpochSums, interrupted: Callable[[], bool]) -> int:
        """Trains on the task's rows in `order`; stops early when interrupted. Returns how many rows were used."""
        if self.context.parts.agree(interrupted()):
            return 0
        context, size = self.context, min(self.config.batch_size, max(len(order), 1))
        terms = self.method.fused_terms()
        try:
            stats = self.native.train_epoch(
                context.x, context.y, order.contiguous(), size, should_stop=interrupted, **terms
            )
        except NonFiniteStep as error:
            raise stopped(self.method, self.progress, error) from None
        except ValueError as error:
            raise BadInput(f"training: {error}; task {self.progress.stage}") from None
        used = min(stats.steps * size, len(order))
        sums.samples += used
        for name in ("loss", "ce", "kd_hidden", "kd_logits"):
            sums.add(name, getattr(stats, name), used)
        for kind in ROW_KINDS:
            sums.rows[kind] += getattr(stats, kind)
        for phase, seconds in stats.seconds.items():
            self.progress.phases[phase] = self.progress.phases.get(phase, 0.0) + seconds
        if stats.exchanges:
            self._add_traffic(stats)
        self._add_activity(stats)
        return used

    def _add_traffic(self, stats: ssd_kernels.EpochStats) -> None:
        """Adds what the processes exchanged: numbers of the first process, where each other one gets what is sent."""
        for name in ("steps", "exchanges", "sent", "received", "exchange_seconds"):
            self.progress.traffic[name] = self.progress.traffic.get(name, 0) + getattr(stats, name)

    def _add_activity(self, stats: ssd_kernels.EpochStats) -> None:
        """Adds the epoch's steps and seconds to its kind: what a step costs follows from the active neurons per row."""
        if stats.active_per_row == self.config.neurons:
            kind = "all active"
        else:
            kind = f"over {MANY_ACTIVE} active" if stats.active_per_row > MANY_ACTIVE else f"up to {MANY_ACTIVE} active"
        entry = self.progress.activity.setdefault(kind, {"steps": 0, "seconds": 0.0})
        entry["steps"] += stats.steps
        entry["seconds"] += sum(stats.seconds.values())

    def predict(self, x: Tensor) -> Tensor:
        return self.native.logits(x)

    def activity(self, x: Tensor) -> list[Tensor]:
        return [self.context.parts.join("counts0", self.native.frequencies(x))]

    def make_teacher(self, model: SDMLP, units: list[Tensor], x: Tensor) -> Any:
        return self._on(model).make_teacher(x, units[0])

    def tensors(self) -> dict[str, Tensor]:
        if not self.config.momentum:
            return {}
        state = self.native.state_dict()
        return {name: state[name] for name in ("weight_velocity", "output_velocity")}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        if tensors or self.context.parts.shard(self.config.neurons) is None:
            self.native.load_state_dict(self.native.state_dict() | tensors)
        else:
            self.native.invalidate()  # the model's own tensors are the state; a copy of them may not fit


def fused_reason(config: TrainConfig, model: Network, method: Method) -> str:
    """Why the fused engine cannot train this; empty when it can."""
    if model.kind != "sdmlp":
        return "it trains SDMLP, not a ReLU MLP"
    if config.layers > 1:
        return "it trains one hidden layer"
    if config.topk != "gaba" or config.k_start is not None:
        return "it trains with GABA inhibition and one K"
    if not method.fused:
        return f"it does not know the method {config.method} with these options"
    if config.dtype != "float32" or config.max_grad_norm is None:
        return "it trains float32 with a clipped gradient"
    return missing_reason("cpu", "sdmlp_trainer", torch.device(config.device))


def make_engine(context: TaskContext, method: Method, progress: Progress) -> AutogradEngine | FusedEngine:
    """The engine asked for, or the autograd engine where the fused one does not apply; the context computes with it."""
    fused = context.config.engine == "fused" and not fused_reason(context.config, context.model, method)
    engine = (FusedEngine if fused else AutogradEngine)(context, method, progress)
    context.evaluator = engine
    return engine
