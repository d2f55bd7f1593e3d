"""One section of gpu_suite.py: times contenders by graph replay, interleaved, and appends each result as a JSON line.

python benchmarks/gpu_bench.py layer|training|engine|small --records FILE --seconds 60 [--data FILE]

A contender that cannot be captured into a CUDA graph is timed without one, and its record says so. A peer that is not
installed is left out by name; one that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import ssd_kernels

sys.path.append(str(Path(__file__).resolve().parent))

import peers

# (B, D, R, K): the shapes of the design's table of bounds.
LAYERS = ((512, 256, 10_000, 10), (4096, 768, 32_768, 32), (8192, 4096, 131_072, 64))
# Of the kernels around the layer: R, D, B, K, C, n, and how many rows an update touches beside all of them.
TRAINING, TOUCHED = (10_000, 256, 512, 10, 10, 1000), (300, 1400)
ENGINES = (1000, 10_000, 100_000)  # R
# What a device can do at best: dense bf16 FLOP/s and bytes/s. Others are left without a percentage.
PEAKS = {"H200": (790e12, 4.3e12)}


class Recorder:
    """Appends records, and tells how much time is left."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def write(self, **record: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def peak() -> tuple[float, float] | None:
    name = torch.cuda.get_device_name()
    return next((figures for key, figures in PEAKS.items() if key in name), None)


def captured(run: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """A replay of `run`, or `run` itself where it cannot be captured, and which."""
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            run()
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a capture that fails at its end leaves its stream current
        torch.cuda.synchronize()
        return run, f"no graph: {(str(error).splitlines() or ['RuntimeError'])[0][:200]}"
    return graph.replay, "graph replay"


def once(run: Callable[[], object], calls: int) -> float:
    """Seconds per call, by events around some calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def compare(
    recorder: Recorder,
    title: str,
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    flops: float = 0.0,
    traffic: float = 0.0,
) -> None:
    """Times the contenders in turn and records median, quartiles, rates and the share of the bound."""
    ready: dict[str, tuple[Callable[[], object], str, int]] = {}
    for name, run in contenders.items():
        try:
            replay, how = captured(run)
            ready[name] = replay, how, max(1, min(100, int(2e-3 / max(once(replay, 3), 1e-7))))
        except Exception as error:
            recorder.write(title=title, contender=name, error=f"{type(error).__name__}: {error}"[:500])
    samples: dict[str, list[float]] = {name: [] for name in ready}
    end = time.monotonic() + min(seconds, recorder.left())
    while min(map(len, samples.values()), default=30) < 30 and (
        time.monotonic() < end or min(map(len, samples.values())) < 3
    ):
        for name, (run, _, calls) in ready.items():
            samples[name].append(once(run, calls))
    figures = peak()
    bound = max(flops / figures[0], traffic / figures[1]) if figures and flops + traffic else None
    for name, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        record = {"title": title, "contender": name, "how": ready[name][1], "rounds": len(times)}
        record |= {"median_us": median * 1e6, "low_us": low * 1e6, "high_us": high * 1e6}
        record |= {"flops": flops, "bytes": traffic, "tflops": flops / median / 1e12, "tbs": traffic / median / 1e12}
        if bound is not None:
            record |= {"bound_us": bound * 1e6, "percent_of_bound": 100 * bound / median}
        recorder.write(**record)


def _peer_layers(x: torch.Tensor, weight: torch.Tensor, k: int) -> dict[str, Callable[[], object]]:
    """What is installed: score and select, forward only."""
    found: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("flashinfer"):
        flashinfer = importlib.import_module("flashinfer")  # top_k(input, k, sorted=False) -> values, indices
        found["cuBLAS + flashinfer.top_k"] = lambda: flashinfer.top_k(torch.relu(x @ weight.T), k + 1, sorted=True)
    if importlib.util.find_spec("flashlib"):
        # flash_knn(x (N, D), c (M, D), k, *, tol, backend, return_distances) -> squared L2 distances, indices.
        flashlib = importlib.import_module("flashlib")
        found["flashlib.flash_knn"] = lambda: flashlib.flash_knn(x, weight, k + 1)
    if encoder := peers.sparsify_fused_encoder():
        bias = torch.zeros(weight.shape[0], device=x.device, dtype=x.dtype)
        found["eai-sparsify fused encoder"] = lambda: encoder(x, weight, bias, k, "topk")
    return found


def layer(recorder: Recorder, data: str | None) -> None:
    """topk_linear forward, and forward + backward, against every peer."""
    for b, d, r, k in LAYERS:
        for dtype in (torch.bfloat16, torch.float32):
            if recorder.left() < 8:
                recorder.write(title=f"{b}, {d}, {r}, {k}, {dtype}", error="no time was left")
                continue
            torch.compiler.reset()  # a second shape would be compiled for any shape
            torch.manual_seed(0)
            x, weight = (
                torch.nn.functional.normalize(torch.rand(n, d, device="cuda"), dim=1).to(dtype) for n in (b, r)
            )
            size = x.element_size()
            title = f"B {b}, D {d}, R {r}, K {k}, {str(dtype).removeprefix('torch.')}"
            forward = {
                "ours": lambda x=x, w=weight, k=k: ssd_kernels.topk_linear(x, w, k, inhibition=True, backend="triton"),
                "eager: cuBLAS + relu + topk": lambda x=x, w=weight, k=k: peers.eager_layer(x, w, k),
                "torch.compile of that": lambda x=x, w=weight, k=k: peers.compiled_layer()(x, w, k),
                **_peer_layers(x, weight, k),
            }
            flops, traffic = 2.0 * b * d * r, float(size * (b + r) * d + 8 * b * k)
            compare(recorder, f"forward, {title}", forward, 8, flops, traffic)

            leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()

            def ours(leaves=leaves, k=k):
                values = ssd_kernels.topk_linear(*leaves, k, inhibition=True, backend="triton").values
                return torch.autograd.grad(values.sum(), leaves)

            def eager(leaves=leaves, k=k):
                return torch.autograd.grad(peers.eager_layer(*leaves, k)[0].sum(), leaves)

            compare(recorder, f"forward + backward, {title}", {"ours": ours, "eager": eager}, 8)
            del forward, x, weight, leaves


def training(recorder: Recorder, data: str | None) -> None:
    """The kernels around the layer: update, losses, counts."""
    r, d, b, k, c, n = TRAINING
    weight = torch.nn.functional.normalize(torch.rand(r, d, device="cuda"), dim=1)
    for touched in (*TOUCHED, r):
        rows = torch.randperm(r, device="cuda")[:touched].sort().values
        grad = 0.01 * torch.randn(touched, d, device="cuda")
        dense_grad, scale = torch.zeros_like(weight).index_copy_(0, rows, grad), torch.tensor(0.5, device="cuda")

        mine, theirs = weight.clone(), weight.clone()

        def dense(w=theirs, g=dense_grad, s=scale):
            w.sub_(0.05 * s * g).clamp_(min=0)
            w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min_(1e-12))

        def ours(w=mine, rows=rows, g=grad, s=scale):
            ssd_kernels.sparse_update_(w, rows, g, lr=0.05, scale=s, backend="triton")

        compare(recorder, f"sparse_update_, {touched} of {r} rows, D {d}", {"ours": ours, "dense step": dense}, 6,
                traffic=12.0 * touched * d)  # fmt: skip
    h = torch.relu(torch.rand(b, r, device="cuda") - 0.999)
    top, logits, q = torch.topk(h, k), torch.randn(b, c, device="cuda"), torch.randn(b, c, device="cuda")
    z = ssd_kernels.TopK(top.values, top.indices.int(), top.values[:, -1])
    labels, units = torch.randint(c, (b,), device="cuda"), torch.arange(n, device="cuda")

    kl = functools.partial(torch.nn.functional.kl_div, reduction="batchmean", log_target=True)

    def eager_loss():
        log_s, log_t = (torch.log_softmax(v / 8, 1) for v in (logits, q))
        hidden = kl(*(torch.log_softmax(h[:, units] / 8, 1) for _ in range(2)))
        return torch.nn.functional.cross_entropy(logits, labels) + kl(log_s, log_t) + hidden

    compare(recorder, f"distill_loss, B {b}, R {r}, n {n}", {
        "ours": lambda: ssd_kernels.distill_loss(logits, labels, z, q, z, units=units, backend="triton"),
        "eager, fp32": eager_loss,
    }, 6)  # fmt: skip
    compare(recorder, f"activation_counts, B {b}, R {r}, dense", {
        "ours": lambda: ssd_kernels.activation_counts(h, r, backend="triton"), "(h > 0).sum(0)": lambda: (h > 0).sum(0),
    }, 4, traffic=4.0 * b * r)  # fmt: skip
    counts = ssd_kernels.activation_counts(h, r, backend="triton")
    compare(recorder, f"top_n, R {r}, n {n}", {
        "ours": lambda: ssd_kernels.top_n(counts, n, backend="triton"),
        "stable sort": lambda: torch.sort(counts, descending=True, stable=True).indices[:n],
    }, 4)  # fmt: skip


def _samples(data: str | None) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Normalised samples and labels on the GPU, of two classes."""
    if data:
        from safetensors.torch import load_file

        content = load_file(data)
        x, y = content["x_train"].float(), content["y_train"].long()
        keep = y < 2
        x, y, origin = x[keep], y[keep], Path(data).name
    else:
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(2, (10_000,), generator=generator)
        x = torch.rand(2, 256, generator=generator)[y] + 0.4 * torch.randn(10_000, 256, generator=generator)
        origin = "random clusters"
    return ssd_kernels.normalize_inputs(x).contiguous().cuda(), y.contiguous().cuda(), origin


def engine(recorder: Recorder, data: str | None) -> None:
    """Milliseconds per SSD step of SDMLPEngine(backend="triton"), beside the eager step with a cached teacher."""
    from eager_step import EagerSDMLP, EagerTrainer

    x, y, origin = _samples(data)
    for neurons in ENGINES:
        if recorder.left() < 5:
            recorder.write(title=f"SSD step, R {neurons}", error="no time was left")
            continue
        weight = torch.nn.functional.normalize(torch.rand(neurons, x.shape[1], device="cuda"), dim=1)
        output = torch.rand(10, neurons, device="cuda") / neurons**0.5
        counts = torch.full((neurons,), 10**9, device="cuda")
        steps = -(-len(x) // 128)
        trainer = ssd_kernels.SDMLPEngine(weight.clone(), output.clone(), counts.clone(), k=10, gaba_switch=1e6,
                                          backend="triton")  # fmt: skip
        units = ssd_kernels.top_n(trainer.frequencies(x), min(1000, neurons))
        teacher = trainer.make_teacher(x, units)
        order = torch.randperm(len(x), device="cuda")
        eager = EagerTrainer(EagerSDMLP(weight, output, counts, 10, 1e6), EagerSDMLP(weight, output, counts, 10, 1e6),
                             units)  # fmt: skip
        batch = order[:128]
        epoch = functools.partial(trainer.train_epoch, x, y, order, 128, teacher=teacher)
        step = functools.partial(eager.step, x[batch], y[batch])
        for name, run, done in (("engine", epoch, steps), ("eager step, teacher each time", step, 1)):
            run()
            times = []
            while len(times) < 5 or (len(times) < 20 and recorder.left() > 10):
                torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                times.append((time.perf_counter() - start) / done)
            recorder.write(title=f"SSD step, R {neurons}, B 128, {origin}", contender=name, how="wall clock",
                           median_us=statistics.median(times) * 1e6, rounds=len(times))  # fmt: skip


def _small_engine(recorder: Recorder, device: str) -> None:
    """Two epochs of the engine with a teacher and a penalty, launch by launch and by graph replay."""
    generator = torch.Generator().manual_seed(0)
    x = ssd_kernels.normalize_inputs(torch.rand(7, 20, generator=generator)).contiguous()
    weight = torch.nn.functional.normalize(torch.rand(70, 20, generator=generator), dim=1)
    output, y = torch.rand(3, 70, generator=generator) / 70**0.5, torch.arange(7) % 3

    def trained(backend: str, where: str, graphs: bool) -> ssd_kernels.SDMLPEngine:
        parts = (weight.to(where, copy=True), output.to(where, copy=True), torch.zeros(70).long().to(where))
        engine = ssd_kernels.SDMLPEngine(*parts, k=4, gaba_switch=30.0, momentum=0.5, backend=backend)
        if backend == "triton":
            engine._trainer.graphs = graphs
        samples, w, v = x.to(where), engine.weight, engine.output_weight
        teacher = engine.make_teacher(samples, torch.arange(0, 70, 2, device=where))
        penalty = ssd_kernels.QuadraticPenalty(torch.ones_like(w), w.clone(), torch.ones_like(v), v.clone(), 0.2)
        for options in ({"teacher": teacher}, {"penalty": penalty}):
            engine.train_epoch(samples, y.to(where), torch.arange(7, device=where), 4, **options)
        return engine

    gold = trained("reference", "cpu", False)
    for graphs in (False, True):
        name = f"sdmlp_trainer, {'graph replay' if graphs else 'launches'}"
        if graphs and (device == "cpu" or os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"):
            reason = "no GPU" if device == "cpu" else "a capture needs torch's memory cache, which is off"
            recorder.write(title="small shapes", contender=name, status=f"not run: {reason}")
            continue
        engine = trained("triton", device, graphs)
        for part in ("weight", "output_weight"):
            torch.testing.assert_close(getattr(engine, part).cpu(), getattr(gold, part), rtol=1e-4, atol=1e-5)
        recorder.write(title="small shapes", contender=name, status="right")


def small(recorder: Recorder, data: str | None) -> None:
    """Every operation once on small odd shapes, and the engine: what the sanitizers watch."""
    spec = importlib.util.spec_from_file_location(
        "test_gpu", Path(__file__).resolve().parent.parent / "tests" / "ops" / "test_gpu.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in sorted(module._backend.TRITON_OPERATIONS & {*module.cases()}):
        call, tensors = module.on(name, device)
        module.assert_close(call(*tensors, "triton"), call(*tensors, "reference"))
        recorder.write(title="small shapes", contender=name, status="right")
    _small_engine(recorder, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("layer", "training", "engine", "small"))
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--data")
    options = parser.parse_args()
    globals()[options.part](Recorder(options.records, 0.9 * options.seconds), options.data)


if __name__ == "__main__":
    main()
