"""Hugging Face folders: the fields of config.json and the tensor names that most families have in common.

What is absent has the default of the `transformers` library's configuration classes, given where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pyllm.architectures import rope
from pyllm.architectures.draft import Draft, Part, Runs
from pyllm.architectures.fields import Fields
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

_LAYER = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    **{f"expert_{name}": f"mlp.experts.{{expert}}.{name}_proj" for name in ("gate", "up", "down")},
    **{f"shared_{name}": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
    "router": "mlp.gate",
    "shared_router": "mlp.shared_expert_gate",
}
_BIAS = {
    "attention_norm_bias": "attention_norm",
    "ffn_norm_bias": "ffn_norm",
    "bq": "wq",
    "bk": "wk",
    "bv": "wv",
    "bo": "wo",
    "gate_bias": "gate",
    "up_bias": "up",
    "down_bias": "down",
    "router_bias": "router",
}

#: Slots to the names of Llama and all that came after it.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "head_bias": "lm_head.bias",
    "final_norm": "model.norm.weight",
    "final_norm_bias": "model.norm.bias",
    **{slot: f"model.layers.{{layer}}.{name}.weight" for slot, name in _LAYER.items()},
    **{slot: f"model.layers.{{layer}}.{_LAYER[of]}.bias" for slot, of in _BIAS.items()},
}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu2": "relu_squared",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}

# Fields that change nothing in the arithmetic of inference, whatever they say. Others that no family reads are refused
# unless they are off: they were written for a reason that is unknown here.
HARMLESS = frozenset(
    (
        *("architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache"),
        *("pretraining_tp", "initializer_range", "is_decoder", "is_llama_config", "tokenizer_class"),
        *("model_max_length", "max_sequence_length", "seq_length", "attn_implementation", "initializer_factor"),
        *("task_specific_params", "router_jitter_noise", "output_router_logits"),
        *("max_length", "min_length", "temperature", "top_k", "top_p", "do_sample", "repetition_penalty", "num_beams"),
        *("num_return_sequences", "diversity_penalty", "length_penalty", "early_stopping", "num_beam_groups"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "chunk_size_feed_forward", "typical_p"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
        *("id2label", "label2id", "num_labels", "problem_type", "torchscript", "use_bfloat16", "is_encoder_decoder"),
        *("gradient_checkpointing", "use_flash_attn", "cache_implementation", "finetuning_task", "prefix"),
        *("remove_invalid_values", "suppress_tokens", "bad_words_ids", "tf_legacy_loss", "pruned_heads"),
        *("transformers.js_config", "unsloth_version", "unsloth_fixed", "name_or_path", "model_name"),
    )
)
HARMLESS_ENDS = ("dropout", "_dropout_prob", "_pdrop", "_token_id", "_loss_coef", "_token_index")
OFF: tuple[object, ...] = (None, False, 0, "", [], {})


def begin(
    checkpoint: Checkpoint, *, head_dim: int = 0, tied: bool = False, sizes: Mapping[str, str] | None = None
) -> Draft:
    """A draft with all that the families have in common; tensors of the family are still to be named.

    `head_dim` and `tied` are the family's defaults, `sizes` its own names of the fields "hidden_size" and so on.
    """
    fields = Fields(checkpoint.path, checkpoint.metadata, label="config.json's ")
    _refuse_other_kinds(fields)
    draft = Draft(checkpoint, fields, {slot: (Part(name),) for slot, name in NAMES.items()})
    name = dict(sizes or {})
    dim = fields.integer(name.get("hidden_size", "hidden_size"))
    heads = fields.integer(name.get("num_attention_heads", "num_attention_heads"))
    own = fields.has("head_dim") or (head_dim and "head_dim" not in fields.values)
    if not own and dim % heads:
        raise ModelFormatError(f"{fields.path}: config.json's hidden_size {dim} is no multiple of the {heads} heads")
    draft.set(
        architecture=fields.text("model_type"),
        dim=dim,
        n_heads=heads,
        n_kv_heads=fields.integer(name.get("num_key_value_heads", "num_key_value_heads"), heads),
        head_dim=fields.integer("head_dim", head_dim if own else max(1, dim // heads)),
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer(name.get("max_position_embeddings", "max_position_embeddings"), 2048),
    )
    draft.begin_layers(fields.integer(name.get("num_hidden_layers", "num_hidden_layers")))
    draft.set(hidden_dim=fields.integer(name.get("intermediate_size", "intermediate_size"), 4 * dim))
    if not fields.flag("tie_word_embeddings", tied):
        draft.needs("head")
    else:
        draft.ignore(NAMES["head"])
    return draft


def _refuse_other_kinds(fields: Fields) -> None:
    """What changes the meaning of everything else is named first."""
    for name, what in (("vision_config", "a vision tower"), ("audio_config", "an audio tower")):
        if fields.get(name):
            raise UnsupportedModelError(f"{fields.path}: the model has {what} ({name}), which pyllm cannot run")
    quantisation = fields.section("quantization_config")
    method = quantisation.get("quant_method")
    if quantisation.values and not (method == "mxfp4" and fields.get("model_type") == "gpt_oss"):
        raise UnsupportedModelError(
            f"{fields.path}: the weights are quantised by {str(method)[:40]!r} (quantization_config), which pyllm "
            "cannot read: take the original weights, or a GGUF file"
        )
    fields.assume("is_encoder_decoder", False)
    fields.assume("use_bidirectional_attention", False)


def norm(draft: Draft, kind: str, name: str, default: float) -> None:
    """How vectors are normalised, and the field that holds the epsilon."""
    draft.set(norm=kind, norm_eps=draft.fields.number(name, default))


def activation(draft: Draft, *names: str, default: str = "silu", gated: bool = True) -> None:
    """The activation, from the first of these fields that is there."""
    name = next((name for name in names or ("hidden_act",) if draft.fields.has(name)), (names or ("hidden_act",))[0])
    draft.set(activation=draft.fields.choice(name, ACTIVATIONS, default), gated=gated)


def biases(draft: Draft, field: str, *slots: str, default: bool = False) -> None:
    """Slots that are there if a field says so."""
    if draft.fields.flag(field, default):
        draft.needs(*slots)


def _strip(draft: Draft, base: str) -> None:
    """Models saved without a head lack the first part of every name."""
    if any(name.startswith(base) for name in draft.checkpoint.tensors):
        return
    for slot, parts in draft.names.items():
        stripped = (
            replace(
                part,
                name=part.name.removeprefix(base),
                scales=part.scales.removeprefix(base),
                every_plus=part.every_plus.removeprefix(base),
            )
            for part in parts
        )
        draft.place(slot, *stripped)
    draft.ignored = {name.removeprefix(base) for name in draft.ignored}


def finish(draft: Draft, base: str = "model.") -> Draft:
    """The same draft, with names without `base` where the file has them so; fields that nobody read are refused."""
    draft.ignore("model.layers.{layer}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    _strip(draft, base)
    fields = draft.fields
    for name in fields.unread():
        if name in HARMLESS or name.startswith("_") or name.endswith(HARMLESS_ENDS):
            continue
        value = fields.get(name)
        if not any(type(value) is type(off) and value == off for off in OFF):
            raise fields.unsupported(name, f"is {str(value)[:80]!r}, a field that this family is not known to have")
    return draft


# ---- layers ----------------------------------------------------------------------------------------------------------


def layer_types(draft: Draft, default: Iterable[bool]) -> list[bool]:
    """Which layers have sliding attention: `layer_types`, or what is said to be the default."""
    if not draft.fields.has("layer_types"):
        return list(default)
    known = {"full_attention": False, "sliding_attention": True}
    types = draft.fields.items("layer_types", len(draft.layers))
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise draft.fields.unsupported("layer_types", f"has {str(kind)[:40]!r}")
    return [known[kind] for kind in types]


def window(draft: Draft, layers: Iterable[bool], default: int | None = None) -> None:
    """A window of `sliding_window` positions, if it is set, for the layers that are marked."""
    fields = draft.fields
    if fields.has("sliding_window") or (default and "sliding_window" not in fields.values):
        draft.windows(fields.integer("sliding_window", default, least=1 if any(layers) else 0), layers)


def qwen_window(draft: Draft, default: Iterable[bool]) -> None:
    """Qwen's: a window counts only where it is also turned on."""
    fields = draft.fields
    on, layers = fields.flag("use_sliding_window", False), layer_types(draft, default)
    if on and any(layers):
        draft.windows(fields.integer("sliding_window", 4096), layers)
    else:
        fields.get("sliding_window")


# ---- experts ---------------------------------------------------------------------------------------------------------


def qwen_experts(draft: Draft, *, n_experts: int, used: int, expert_dim: int) -> None:
    """Experts in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`, one tensor each or all in one."""
    fields, layers = draft.fields, len(draft.layers)
    draft.set(
        n_experts=fields.integer("num_experts", fields.integer("num_local_experts", n_experts)),
        n_experts_used=fields.integer("num_experts_per_tok", used),
        expert_dim=fields.integer("moe_intermediate_size", expert_dim),
        expert_renormalise=fields.flag("norm_topk_prob", False),
    )
    step, dense = fields.integer("decoder_sparse_step", 1), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or len(dense) > layers:
        raise fields.bad("mlp_only_layers", dense, f"a list of at most {layers}")
    draft.experts((i + 1) % step == 0 and i not in dense for i in range(layers))
    fused_experts(draft, "model.layers.{layer}.mlp.experts.")


def fused_experts(draft: Draft, base: str) -> None:
    """All experts of a layer in one tensor, gate before up, as transformers 5 has them in memory."""
    hidden = draft.config["expert_dim"]
    for slot, start in (("expert_gate", 0), ("expert_up", hidden)):
        part = Part(base + "gate_up_proj", Runs(2 * hidden, start, hidden), stacked=True)
        draft.place(slot, *draft.names[slot], part)
    draft.place("expert_down", *draft.names["expert_down"], Part(base + "down_proj", stacked=True))


# ---- RoPE ------------------------------------------------------------------------------------------------------------


def rotation(draft: Draft, *, theta: float = 10000.0, partial: float = 1.0) -> None:
    """The one RoPE of all layers: rope_parameters (transformers 5), or rope_theta and rope_scaling (before)."""
    fields = draft.fields
    parameters = fields.section("rope_parameters")
    if not parameters.values:
        parameters = fields.section("rope_scaling")
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise fields.unsupported("rope_parameters", "differs from layer to layer")
    rotate(draft, parameters, fields, theta=theta, partial=partial)


def rotations(draft: Draft, *, theta: float, local_theta: float | None) -> None:
    """RoPE of layers with full attention, and of those with a window; transformers 5 says it for each kind of layer.

    `local_theta` None: the same base by default.
    """
    fields = draft.fields
    both = fields.section("rope_parameters")
    if both.has("full_attention", "sliding_attention"):
        main, local = both.section("full_attention"), both.section("sliding_attention")
    else:
        main = both if both.values else fields.section("rope_scaling")
        local = Fields(fields.path, {}, label=fields.label)
    rotate(draft, main, fields, theta=theta)
    local.assume("rope_type", "default")
    usual = draft.config["rope_base"] if local_theta is None else local_theta
    base = local.number("rope_theta", fields.number("rope_local_base_freq", usual))
    if base != draft.config["rope_base"] or draft.constants or draft.config["rope_scale"] != 1.0:
        draft.set(rope_local_base=base)
        draft.ropes("local", draft.local())


def rotate(draft: Draft, parameters: Fields, fields: Fields, *, theta: float, partial: float = 1.0) -> None:
    """One kind of RoPE. Its base and its share of the dimensions stand inside the parameters, or beside them."""
    base = parameters.number("rope_theta", fields.number("rope_theta", theta))
    share = parameters.number("partial_rotary_factor", fields.number("partial_rotary_factor", partial))
    dims = int(draft.config["head_dim"] * share)
    draft.set(rope_base=base, rope_dims=dims)
    if not 2 <= dims <= draft.config["head_dim"]:
        raise ModelFormatError(f"{fields.path}: RoPE over {dims} of {draft.config['head_dim']} dimensions")
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    kinds = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
    kinds |= dict.fromkeys(("longrope", "su"), _longrope)
    if kind == "default":
        draft.stretch(rope.Stretch())
    elif kind in kinds:
        if base <= 1.0:
            raise parameters.bad("rope_theta", base, "more than 1")
        draft.stretch(kinds[kind](draft, parameters, base, dims))
    else:
        raise parameters.unsupported("rope_type" if parameters.has("rope_type") else "type")
    for name in parameters.unread():
        if name not in ("original_max_position_embeddings", "type", "rope_type", "factor", "finetuned"):
            raise parameters.unsupported(name)


def _original(draft: Draft, parameters: Fields) -> int:
    """The length that a model was trained for; a field beside the parameters goes before one inside."""
    fields, name = draft.fields, "original_max_position_embeddings"
    inside = parameters.integer(name, draft.config["context_length"])
    return fields.integer(name, inside)


def _linear(draft: Draft, parameters: Fields, base: float, dims: int) -> rope.Stretch:
    return rope.linear(dims, parameters.number("factor"))


def _dynamic(draft: Draft, parameters: Fields, base: float, dims: int) -> rope.Stretch:
    stretch, longest = rope.dynamic(dims, max(parameters.number("factor"), 1.0), draft.config["context_length"])
    draft.set(context_length=longest)
    return stretch


def _llama3(draft: Draft, parameters: Fields, base: float, dims: int) -> rope.Stretch:
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if low >= high:
        raise parameters.bad("low_freq_factor", low, f"less than high_freq_factor, {high}")
    return rope.llama3(base, dims, parameters.number("factor"), low, high, _original(draft, parameters))


def _yarn(draft: Draft, parameters: Fields, base: float, dims: int) -> rope.Stretch:
    original = _original(draft, parameters)
    factor = parameters.number("factor", draft.config["context_length"] / original)
    scale = rope.yarn_scale(factor)
    one, all_dims = parameters.number_or_off("mscale"), parameters.number_or_off("mscale_all_dim")
    if one and all_dims:
        scale = rope.yarn_scale(factor, one) / rope.yarn_scale(factor, all_dims)
    return rope.yarn(
        base,
        dims,
        factor,
        original,
        beta_fast=parameters.number_or_off("beta_fast") or 32.0,
        beta_slow=parameters.number_or_off("beta_slow") or 1.0,
        truncate=parameters.flag("truncate", True),
        scale=parameters.number("attention_factor", scale),
    )


def _longrope(draft: Draft, parameters: Fields, base: float, dims: int) -> rope.Stretch:
    original = _original(draft, parameters)
    short, long = (parameters.numbers(f"{name}_factor", dims // 2) for name in ("short", "long"))
    factor = parameters.number("factor", draft.config["context_length"] / original)
    scale = parameters.number("attention_factor", rope.longrope_scale(factor, original))
    return rope.Stretch(short, scale, long, original)
