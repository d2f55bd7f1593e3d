"""`ssd-train embed`: images to embeddings with a frozen extractor, in parts that survive an interruption."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from .. import data as datasets
from ..checkpoint import read_tensors, write_atomic, write_tensors
from ..data.dataset import file_sha256
from ..errors import BadInput, bad, say
from ..run.folder import StopSignals
from .convmixer import from_state, shape_of

ALLOWED = "convmixer with --weights FILE, torchvision:NAME or timm:NAME"
PART = 4096


def embed(spec: str, extractor: str, weights: str | None, out: Path, batch_size: int, device: str,
          mean: list[float], std: list[float]) -> int:  # fmt: skip
    """Writes `out`, an embedding file that `--data` takes. Returns the exit code.

    Args:
        spec: what `--data` names: images of 3 channels and equal height and width. mean, std: per channel, of pixels
            in 0 .. 1; (x - mean) / std is what the extractor sees.
    """
    if out.suffix != ".safetensors":
        raise bad("--out", str(out), "FILE.safetensors")
    if batch_size < 1:
        raise bad("--batch-size", batch_size, "1 or more")
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, 3) or (name == "--std" and min(values) <= 0):
            raise bad(name, values, "one number or three, those of --std positive")
    model, features, described = load_extractor(extractor, weights)
    data = datasets.load(spec)
    side = round((data.dim / 3) ** 0.5)
    if 3 * side * side != data.dim:
        raise bad("--data", spec, f"square images of 3 channels; these have {data.dim} values")
    model.to(device).eval()
    label = f"{described}, {spec}, {data.sha256}, mean {mean}, std {std}"
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1).to(device) for v in (mean, std))
    arrays = {"y_train": data.y_train, "y_test": data.y_test}
    with StopSignals() as stop:
        for split in ("train", "test"):
            x = getattr(data, f"x_{split}").view(-1, 3, side, side)

            def compute(part: Tensor) -> Tensor:
                images = (part.to(device) - shift) / scale
                return torch.cat([features(batch).cpu() for batch in images.split(batch_size)])

            done = _in_parts(x, compute, out.with_name(f".{out.name}.{split}.part"), label, split, stop)
            if done is None:
                say("ssd-train: interrupted, the parts are saved; the same command continues", file=sys.stderr)
                return 128 + stop.received
            arrays[f"x_{split}"] = done
    metadata = {"name": data.name, "extractor": described, "source": data.sha256}
    write_atomic(out, save(arrays, metadata))
    for split in ("train", "test"):
        out.with_name(f".{out.name}.{split}.part").unlink(missing_ok=True)
    width = arrays["x_train"].shape[1]
    say(f"{data.name}: {len(data.x_train)} + {len(data.x_test)} embeddings of {width} values, written to {out}")
    return 0


@torch.no_grad()
def _in_parts(x: Tensor, compute: Callable[[Tensor], Tensor], saved: Path, label: str, split: str,
              stop: StopSignals) -> Tensor | None:  # fmt: skip
    """The embeddings of x, going on from `saved` where it is from the same images and extractor; None if stopped."""
    parts: list[Tensor] = []
    if saved.exists():
        tensors, state = read_tensors(saved)
        parts = [tensors["x"]] if state.get("label") == label else []
    position = sum(len(part) for part in parts)
    with tqdm(total=len(x), initial=position, desc=split, unit="image", disable=not sys.stderr.isatty()) as bar:
        while position < len(x):
            if stop():
                if parts:
                    write_tensors(saved, {"x": torch.cat(parts)}, {"label": label})
                return None
            parts.append(compute(x[position : position + PART]))
            position += len(parts[-1])
            bar.update(len(parts[-1]))
    return torch.cat(parts)


def load_extractor(name: str, weights: str | None) -> tuple[nn.Module, Callable[[Tensor], Tensor], str]:
    """The network, the function from images to (B, D), and its description.

    Raises:
        BadInput: no such extractor, weights that do not fit it, or a package that is not installed.
    """
    if name == "convmixer":
        if weights is None:
            raise bad("--weights", weights, "a file of ConvMixer weights, .safetensors or a torch state dict")
        model = _convmixer(Path(weights))
        return model, model.embed, f"{shape_of(model)}, weights {file_sha256(Path(weights))[:12]}"
    package, colon, model_name = name.partition(":")
    if package not in ("torchvision", "timm") or not colon:
        raise bad("--extractor", name, ALLOWED)
    try:
        if package == "timm":
            import timm

            model = timm.create_model(
                model_name, pretrained=weights is None, num_classes=0, checkpoint_path=weights or ""
            )
        else:
            import torchvision

            model = torchvision.models.get_model(model_name, weights="DEFAULT" if weights is None else None)
            if weights is not None:
                model.load_state_dict(read_state(Path(weights)))
            head = "fc" if hasattr(model, "fc") else "classifier"
            setattr(model, head, nn.Identity())
    except ImportError:
        raise BadInput(f"--extractor: {name} needs the package {package}, which is not installed") from None
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise BadInput(f"--extractor: {name} cannot be loaded ({str(error).splitlines()[0]})") from None
    return model, model, name


def _convmixer(path: Path) -> nn.Module:
    try:
        return from_state(read_state(path))
    except (KeyError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--weights: {path} does not hold a ConvMixer with keys features.* ({reason})") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Weights from .safetensors, or from a torch file with weights_only=True: nothing in it is executed."""
    if not path.is_file():
        raise bad("--weights", str(path), "an existing file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadInput(f"--weights: {path} cannot be read ({str(error).splitlines()[0]})") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for what weights_only refuses
        if type(error).__name__ != "UnpicklingError":
            raise
        raise BadInput(f"--weights: {path} holds more than weights and is not read") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadInput(f"--weights: {path} holds no state dict")
    return {key.removeprefix("module."): value for key, value in state.items()}
