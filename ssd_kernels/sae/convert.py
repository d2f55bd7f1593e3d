"""State dicts of public Top-K autoencoders, from and to TopKAutoencoder. The packages themselves are not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .autoencoder import TopKAutoencoder

Client = Literal["dictionary_learning", "openai", "sae_lens", "sparsify"]

# Names of encoder (R, D), its bias, decoder (R, D) and its bias; True: stored as its transpose.
_NAMES: dict[str, tuple[tuple[str, bool], ...]] = {
    "dictionary_learning": (
        ("encoder.weight", False), ("encoder.bias", False), ("decoder.weight", True), ("b_dec", False),
    ),
    "openai": (("encoder.weight", False), ("latent_bias", False), ("decoder.weight", True), ("pre_bias", False)),
    "sae_lens": (("W_enc", True), ("b_enc", False), ("W_dec", False), ("b_dec", False)),
    "sparsify": (("encoder.weight", False), ("encoder.bias", False), ("W_dec", False), ("b_dec", False)),
}
_OWN = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def client_of(state: Mapping[str, Any]) -> str:
    """Whose state_dict this is.

    Raises:
        ValueError: nobody's that is known; names what is.
    """
    found = [name for name, parts in _NAMES.items() if all(part in state for part, _ in parts)]
    if len(found) != 1:
        known = "; ".join(f"{name}: {', '.join(part for part, _ in parts)}" for name, parts in _NAMES.items())
        raise ValueError(f"from_client: the state_dict has {', '.join(state) or 'nothing'}; allowed are {known}")
    return found[0]


def from_client(state: Mapping[str, Any], k: int | None = None, **options: Any) -> TopKAutoencoder:
    """A TopKAutoencoder with the weights of a client's state_dict.

    | client | class | what to give beside |
    |---|---|---|
    | dictionary_learning | `AutoEncoderTopK`, `BatchTopKSAE` (selection="batch") | K is in the state |
    | openai | `Autoencoder` with `TopK`; its layer norm (`normalize=True`) is the caller's | k |
    | sae_lens | `TopKTrainingSAE`, `TopKSAE` | k; scale_by_decoder_norm where rescale_acts_by_decoder_norm |
    | sparsify | `SparseCoder` with activation "topk" | k |

    Args:
        state: the client's `state_dict()`; tensors are copied.
        k: K, where the state does not hold it.
        options: of TopKAutoencoder.

    Raises:
        ValueError: nobody's state_dict, no K, or shapes that do not fit.
    """
    client = client_of(state)
    parts = [state[name].t() if turned else state[name] for name, turned in _NAMES[client]]
    if k is None:
        if "k" not in state:
            raise ValueError(f"from_client: a state_dict of {client} holds no K: give k")
        k = int(state["k"])
    neurons, inputs = parts[0].shape
    model = TopKAutoencoder(inputs, neurons, k, dtype=parts[0].dtype, device=parts[0].device, **options)
    for name, part in zip(_OWN, parts):
        if part.shape != (own := model.get_parameter(name)).shape:
            raise ValueError(f"from_client: {name} is {tuple(part.shape)} for an encoder {(neurons, inputs)}")
        own.data.copy_(part)
    if client == "dictionary_learning" and "threshold" in state:
        model.threshold.copy_(state["threshold"])
    used = {name for name, _ in _NAMES[client]} | {"k", "threshold"}
    model.client_state = {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items() if name not in used
    }
    return model


def to_client(model: TopKAutoencoder, client: Client) -> dict[str, Tensor]:
    """The state_dict that the client's `load_state_dict` takes; tensors are copies.

    What a client holds beside weights, thresholds and K is given back as `from_client` found it, and otherwise fresh
    (openai's statistics of latents).

    Raises:
        ValueError: a client that is not known.
    """
    if client not in _NAMES:
        raise ValueError(f"to_client: client={client!r}: allowed are {', '.join(_NAMES)}")
    state: dict[str, Any] = {}
    for own, (name, turned) in zip(_OWN, _NAMES[client]):
        part = model.get_parameter(own).detach()
        state[name] = (part.t() if turned else part).clone(memory_format=torch.contiguous_format)
    if client == "dictionary_learning":
        state["k"] = torch.tensor(model.winners(), dtype=torch.int32)
        state["threshold"] = model.threshold.clone()
    if client == "openai":
        zeros = torch.zeros(model.neurons, device=model.W_dec.device)
        state["stats_last_nonzero"] = zeros.long()
        state["latents_activation_frequency"], state["latents_mean_square"] = zeros + 1, zeros
    known = {name for name in state if name not in dict(_NAMES[client])}
    kept = {name: value for name, value in model.client_state.items() if client == "openai" or name in known}
    return {**state, **kept}
