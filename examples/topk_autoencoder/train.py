"""Trains a Top-K sparse autoencoder on real activations, beside the same model in eager PyTorch, and plots both.

    python examples/topk_autoencoder/train.py --steps 2000 --out runs/autoencoder
    python examples/topk_autoencoder/train.py --data embeddings.safetensors --neurons 8192 --k 32 --out runs/autoencoder

Activations: a safetensors file with a float matrix (N, D), by default the CIFAR-10 embeddings in the folder that
SSD_DATA_DIR names, else scikit-learn's digits. Dead neurons are revived by AuxK. OUT gets curves.json and curves.png:
loss, L0 and the share of dead neurons over the steps, of both models, and the seconds that each took.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ssd_kernels.sae import TopKAutoencoder


class EagerAutoencoder(nn.Module):
    """What TopKAutoencoder computes, as one writes it in PyTorch: all (B, R) scores, topk, scatter, dense products."""

    def __init__(self, model: TopKAutoencoder) -> None:
        super().__init__()
        self.k, self.aux_k, self.dead_after, self.aux_weight = model.k, model.aux_k, model.dead_after, model.aux_weight
        self.encoder = nn.Linear(model.inputs, model.neurons)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.W_dec = nn.Parameter(model.W_dec.detach().clone())
        self.b_dec = nn.Parameter(model.b_dec.detach().clone())
        self.register_buffer("samples_since_fired", torch.zeros(model.neurons, dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """The loss, the dense code (B, R), and how many neurons were dead."""
        a = torch.relu(self.encoder(x - self.b_dec))
        code = torch.zeros_like(a).scatter(-1, *reversed(a.topk(self.k)))
        variance = (x - x.mean(0)).square().sum()
        residual = x - (code @ self.W_dec + self.b_dec)
        loss = residual.square().sum() / variance
        dead = self.samples_since_fired >= self.dead_after
        if count := int(dead.sum()):
            top = torch.where(dead, a, -torch.inf).topk(min(self.aux_k, count))
            revived = torch.zeros_like(a).scatter(-1, top.indices, top.values) @ self.W_dec
            error = (revived - residual.detach()).square().sum() / variance
            loss = loss + self.aux_weight * min(count / self.aux_k, 1.0) * error
        fired = (code > 0).any(0)
        self.samples_since_fired = torch.where(fired, 0, self.samples_since_fired + len(x))
        return loss, code, count

    def training_step(self, x: Tensor, optimizer: torch.optim.Optimizer) -> tuple[float, float, int]:
        """One step; its loss, L0 and number of dead neurons."""
        loss, code, dead = self(x)
        loss.backward()
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        return loss.item(), (code > 0).sum(1).float().mean().item(), dead


def sparse_step(model: TopKAutoencoder, x: Tensor, optimizer: torch.optim.Optimizer) -> tuple[float, float, int]:
    """As EagerAutoencoder.training_step."""
    output = model.training_step(x, optimizer)
    return output.loss.item(), (output.code.values > 0).sum().item() / len(x), output.dead


def activations(file: Path | None) -> Tensor:
    """(N, D) float32, centred and scaled to a mean square of 1."""
    folder = os.environ.get("SSD_DATA_DIR")
    if file is None and folder:
        file = next(iter(sorted(Path(folder).glob("*cifar10*.safetensors"))), None)
    if file is None:
        from sklearn.datasets import load_digits

        x = torch.tensor(load_digits().data, dtype=torch.float32)
    else:
        from safetensors.torch import load_file

        matrices = [t for t in load_file(file).values() if t.dim() == 2 and t.is_floating_point()]
        if not matrices:
            raise SystemExit(f"--data {file}: it holds no float matrix (N, D)")
        x = max(matrices, key=len).float()
    x = x - x.mean(0)
    return x / x.square().mean().sqrt()


def train(x: Tensor, arguments: argparse.Namespace) -> dict[str, dict]:
    """The curves of both models over the same batches, step by step in turn."""
    torch.manual_seed(arguments.seed)
    sparse = TopKAutoencoder(
        x.shape[1], arguments.neurons, arguments.k, dead_after=arguments.dead_after, aux_k=max(1, x.shape[1] // 2)
    )
    models: dict[str, nn.Module] = {"ssd_kernels": sparse}
    if not arguments.alone:
        models["eager"] = EagerAutoencoder(sparse)
    optimizers = {n: torch.optim.Adam(m.parameters(), lr=arguments.lr, fused=True) for n, m in models.items()}
    curves: dict[str, dict] = {n: {"loss": [], "l0": [], "dead": [], "seconds": 0.0} for n in models}
    generator = torch.Generator().manual_seed(arguments.seed)
    for step in range(arguments.steps):
        batch = x[torch.randint(len(x), (arguments.batch_size,), generator=generator)]
        for name, model in models.items():
            begin = time.perf_counter()
            run = sparse_step if isinstance(model, TopKAutoencoder) else EagerAutoencoder.training_step
            loss, l0, dead = run(model, batch, optimizers[name])
            curve = curves[name]
            curve["seconds"] += time.perf_counter() - begin
            for key, value in (("loss", loss), ("l0", l0), ("dead", dead / arguments.neurons)):
                curve[key].append(value)
        if step % 100 == 99 or step + 1 == arguments.steps:
            for name, curve in curves.items():
                loss, l0, dead = (curve[key][-1] for key in ("loss", "l0", "dead"))
                figures = f"loss {loss:.4f}, L0 {l0:.1f}, dead {dead:.1%}, {curve['seconds']:.1f} s"
                print(f"step {step + 1}, {name}: {figures}", flush=True)
    return curves


def plot(curves: dict[str, dict], file: Path) -> None:
    """Loss, L0 and dead share over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    for axis, (key, title) in zip(axes, (("loss", "loss"), ("l0", "L0"), ("dead", "share of dead neurons"))):
        for (name, curve), style in zip(curves.items(), ("-", "--")):
            axis.plot(curve[key], style, label=f"{name}, {curve['seconds']:.0f} s")
        axis.set(title=title, xlabel="step", ylim=(0, None))
    axes[0].legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="safetensors file with a float matrix (N, D)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--neurons", type=int, default=4096)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dead-after", type=int, default=20_000, help="samples without firing")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without the eager model")
    arguments = parser.parse_args()
    curves = train(activations(arguments.data), arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    (arguments.out / "curves.json").write_text(json.dumps({"settings": settings, "curves": curves}) + "\n")
    plot(curves, arguments.out / "curves.png")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
