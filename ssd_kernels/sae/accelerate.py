"""accelerate: Top-K autoencoders of public packages on the kernels of this one, in place."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._types import TopK
from ..sparse_linear import sparse_linear
from ..topk_linear import topk_linear
from .lazy import LazyTensor, Scores


class LazyLinear(nn.Linear):
    """nn.Linear whose output is computed when it is read; `relu` and `topk` of it are `topk_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or isinstance(x, LazyTensor):
            return super().forward(x)
        return Scores.of(x, self.weight, self.bias)


class Client(NamedTuple):
    """A model that `accelerate` knows."""

    distribution: str | None  # on PyPI
    versions: tuple[tuple[int, ...], tuple[int, ...]]  # from, and below
    apply: Callable[[Any], None]


def accelerate(model: nn.Module) -> nn.Module:
    """Makes a Top-K autoencoder of a public package fast, in place: its Parameters, methods and state_dict stay.

    | class | package |
    |---|---|
    | `AutoEncoderTopK`, `BatchTopKSAE` | dictionary-learning 0.1 |
    | `TopKTrainingSAE`, `TopKSAE` | sae-lens 6.54 |
    | `SparseCoder` | eai-sparsify 1.3 |
    | `Autoencoder` with `TopK` | openai/sparse_autoencoder at commit 764586a |

    The encoder's pre-activations become a tensor that is computed when something reads it: the model's own Top-K, the
    decoder's product with its code and the selection of dead neurons run as `topk_linear` and `sparse_linear`, and
    whatever else reads pre-activations or codes (a threshold, a selection over a batch, a hook, a metric) gets the
    dense tensor, as before. So losses, gradients, dead neurons, changes of k and thresholds are the package's own, up
    to the order of sums. Where fewer than K pre-activations are positive, the zeros among the winners may be other
    neurons, and receive no gradient (`SparseCoder` itself sends them one).

    Pre-activations that are first read after an optimizer's step are an error, because the weights are no longer those
    that they depend on.

    Args:
        model: an instance of one of these classes; a model that has been accelerated already is left as it is.

    Returns:
        The model itself.

    Raises:
        TypeError: another class, subclasses of the above included; names those that are known.
        ValueError: the package has a version that has not been tested.
    """
    kind = type(model)
    if getattr(kind, "_ssd_kernels_accelerated", False) or isinstance(getattr(model, "encoder", None), LazyLinear):
        return model
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in CLIENTS:
        raise TypeError(f"accelerate: {name} is not known; allowed are {', '.join(CLIENTS)}")
    client = CLIENTS[name]
    if client.distribution is not None:
        _check_version(name, client)
    client.apply(model)
    return model


def _check_version(name: str, client: Client) -> None:
    version = importlib.metadata.version(str(client.distribution))
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    first, below = client.versions
    if not first <= found < below:
        low, high = (".".join(map(str, numbers)) for numbers in (first, below))
        raise ValueError(
            f"accelerate: {name} of {client.distribution} {version}: allowed are versions from {low} and below {high}"
        )


def _lazy_encoder(model: Any) -> None:
    """dictionary_learning: relu, topk, scatter_ and the decoder are calls on the encoder's output."""
    if type(model.encoder) is not nn.Linear:
        raise TypeError(f"accelerate: its encoder is a {type(model.encoder).__name__}: allowed is a plain nn.Linear")
    model.encoder.__class__ = LazyLinear


def _become(model: Any, methods: dict[str, Callable[..., Any]]) -> None:
    """Gives one instance other methods, in a subclass of its class."""
    kind = type(model)
    fields = {**methods, "_ssd_kernels_accelerated": True, "__reduce_ex__": _reduce, "__module__": kind.__module__}
    model.__class__ = type(kind.__name__, (kind,), fields)


def _reduce(model: Any, protocol: Any) -> Any:
    return _rebuild, (type(model).__mro__[1],), model.__dict__


def _rebuild(kind: Any) -> Any:
    model = kind.__new__(kind)
    name = f"{kind.__module__}.{kind.__qualname__}"
    CLIENTS[name].apply(model)
    return model


def _sparsify(model: Any) -> None:
    def encode(self: Any, x: Tensor) -> Any:
        output = importlib.import_module("sparsify.fused_encoder").EncoderOutput
        x = x if self.cfg.transcode else x - self.b_dec
        k, groupmax = self.cfg.k, self.cfg.activation == "groupmax"
        top = topk_linear(x, self.encoder.weight, k, self.encoder.bias, groups=k if groupmax else 1)
        # Its own derivative drops what comes through the pre-activations; so they are constants here.
        constants = (t.detach() for t in (x, self.encoder.weight, self.encoder.bias))
        return output(top.values, top.indices.long(), torch.relu(Scores.of(*constants)))

    def decode(self: Any, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        assert self.W_dec is not None, "Decoder weight was not initialized."
        values = top_acts.to(self.dtype)
        code = TopK(values, top_indices.to(torch.int32), values[..., 0].detach())
        return sparse_linear(code, self.W_dec.mT) + self.b_dec

    _become(model, {"encode": encode, "decode": decode})


def _sae_lens_scores(model: Any, x: Tensor) -> Tensor:
    scale = model.W_dec.norm(dim=-1) if model.cfg.rescale_acts_by_decoder_norm else None
    bare = Scores.of(model.process_sae_in(x), model.W_enc.t(), model.b_enc)
    hooked = model.hook_sae_acts_pre(bare)
    if scale is None:
        return hooked
    if hooked is not bare:  # a hook has read or replaced it
        return hooked * scale
    x, weight, bias, _ = bare.operands
    return Scores.of(x, weight, bias, scale=scale)


def _sae_lens(model: Any) -> None:
    def encode_with_hidden_pre(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden_pre = _sae_lens_scores(self, x)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def encode(self: Any, x: Tensor) -> Tensor:
        return self.hook_sae_acts_post(self.activation_fn(_sae_lens_scores(self, x)))

    training = hasattr(type(model), "encode_with_hidden_pre")
    _become(model, {"encode_with_hidden_pre": encode_with_hidden_pre} if training else {"encode": encode})


def _openai(model: Any) -> None:
    if type(model.activation).__name__ != "TopK":
        raise TypeError(f"accelerate: its activation is {type(model.activation).__name__}: allowed is TopK")

    def encode_pre_act(self: Any, x: Tensor, latent_slice: slice = slice(None)) -> Tensor:
        return Scores.of(x - self.pre_bias, self.encoder.weight[latent_slice], self.latent_bias[latent_slice])

    _become(model, {"encode_pre_act": encode_pre_act})


CLIENTS: dict[str, Client] = {
    "dictionary_learning.trainers.top_k.AutoEncoderTopK": Client(
        "dictionary-learning", ((0, 1), (0, 2)), _lazy_encoder
    ),
    "dictionary_learning.trainers.batch_top_k.BatchTopKSAE": Client(
        "dictionary-learning", ((0, 1), (0, 2)), _lazy_encoder
    ),
    "sae_lens.saes.topk_sae.TopKTrainingSAE": Client("sae-lens", ((6, 54), (6, 55)), _sae_lens),
    "sae_lens.saes.topk_sae.TopKSAE": Client("sae-lens", ((6, 54), (6, 55)), _sae_lens),
    "sparsify.sparse_coder.SparseCoder": Client("eai-sparsify", ((1, 3), (1, 4)), _sparsify),
    "sparse_autoencoder.model.Autoencoder": Client(None, ((0,), (0,)), _openai),
}
