"""`ModelConfig`: what the forward pass needs to know about a model, as plain orthogonal switches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. Fields mirror `pl_config` in `csrc/pyllm_api.h`.

    Sizes are element counts; `context_length` is the number of positions the model was made for.
    """

    architecture: str  # for people and errors only: the C library never sees it
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_dims: int = 0  # leading dimensions of each head that rotate
    rope_interleaved: bool = False  # the file pairs dimensions (2i, 2i + 1) instead of (i, i + rope_dims / 2)
