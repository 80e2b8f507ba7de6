"""`ModelConfig`: what the forward pass needs to know about a model, as plain orthogonal switches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer; mirrors `pl_layer_config`."""

    window: int = 0  # positions a token sees, its own among them; 0: all before it
    rope: str = "main"  # "none", "main" or "local": which rotation queries and keys get
    experts: bool = False  # its feed-forward layer is a mixture of experts


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. Fields mirror `pl_config` in `csrc/pyllm_api.h`, which says what each means.

    Sizes are element counts; `context_length` is the number of positions the model was made for. Fields with choices
    hold the ends of the header's names in lower case: "gelu_tanh" is PL_ACTIVATION_GELU_TANH.
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
    norm: str = "rms"
    norm_after_sum: bool = False
    parallel: bool = False
    causal: bool = True
    qk_norm: str = "none"
    activation: str = "silu"
    gated: bool = True
    activation_limit: float = 0.0
    rope_local_base: float = 0.0
    rope_scale: float = 1.0
    rope_original: int = 0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_dim: int = 0
    shared_dim: int = 0
    routing: str = "softmax"
    expert_renormalise: bool = False
    expert_scale: float = 1.0
    layers: tuple[LayerConfig, ...] = ()  # one for each layer; empty: all are LayerConfig()

    def layer(self, index: int) -> LayerConfig:
        """The config of one layer."""
        return self.layers[index] if self.layers else LayerConfig()
