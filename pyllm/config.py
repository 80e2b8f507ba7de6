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
    """The shape of a transformer, as plain switches. Sizes are element counts; 0 mostly means that a part is not there.

    The C library's `pl_config` (`csrc/pyllm_api.h`) has the same fields, and names for the choices: "gelu_tanh" is
    PL_ACTIVATION_GELU_TANH there.
    """

    architecture: str  # for people and errors only: the C library never sees it
    dim: int  # width of the residual stream
    hidden_dim: int  # width of the feed-forward layer, where it has no experts
    n_layers: int
    n_heads: int  # of queries
    n_kv_heads: int  # of keys and values; n_heads is a multiple
    head_dim: int
    vocab_size: int
    context_length: int  # positions that the model was made for
    norm_eps: float = 1e-5
    rope_base: float = 10000.0  # theta
    rope_dims: int = 0  # leading dimensions of each head that rotate
    rope_interleaved: bool = False  # the file pairs dimensions (2i, 2i + 1) instead of (i, i + rope_dims / 2)
    norm: str = "rms"  # or "layer"
    norm_after_sum: bool = False  # x = norm(x + block(x)), as BERT
    parallel: bool = False  # attention and feed-forward read the same x, and both are added to it
    causal: bool = True  # False: every token sees the whole text, which is read at once
    qk_norm: str = "none"  # or "head", "each", "wide": queries and keys by head, by head with own weights, as a whole
    activation: str = "silu"  # or "gelu", "gelu_tanh", "relu_squared", "silu_clamped"
    gated: bool = True  # the activation multiplies a second product
    activation_limit: float = 0.0  # of "silu_clamped"
    rope_local_base: float = 0.0  # theta of the layers whose rope is "local"
    rope_scale: float = 1.0  # what cosines and sines are multiplied with (YaRN, LongRoPE)
    rope_original: int = 0  # texts longer than this get other RoPE factors
    attention_scale: float = 0.0  # what scores are multiplied with; 0: 1 / sqrt(head_dim)
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap)
    logit_softcap: float = 0.0  # the same of logits
    embedding_scale: float = 1.0  # multipliers of the embedding, of what a block adds, and of the logits
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    n_experts: int = 0
    n_experts_used: int = 0  # for each token
    expert_dim: int = 0  # width of an expert
    shared_dim: int = 0  # width of the expert that every token takes
    routing: str = "softmax"  # or "softmax_chosen", "sigmoid": what makes weights of the router's scores
    expert_renormalise: bool = False  # weights of the experts taken are divided by their sum
    expert_scale: float = 1.0  # and multiplied with this
    layers: tuple[LayerConfig, ...] = ()  # one for each layer; empty: all are LayerConfig()

    def layer(self, index: int) -> LayerConfig:
        """The config of one layer."""
        return self.layers[index] if self.layers else LayerConfig()
