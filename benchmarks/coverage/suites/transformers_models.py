"""Hugging Face transformers 5.24: families of text, vision, audio and multimodal models, small and with random weights.

Vocabularies stay below 1,000 entries, else the embeddings are all there is to such a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.coverage.suites.case import Case, declare_torchvision_ops

Inputs = Callable[[int, torch.Generator], dict[str, torch.Tensor]]
"""(batch size, generator) → the keyword arguments of a call."""


@dataclass(frozen=True)
class Family:
    """One family at a small size.

    Attributes:
        auto: the transformers class that builds it; `from_config` where it is one of the Auto classes.
        config: arguments of the family's configuration class; a dict under `*_config` is a part's configuration.
        inputs: maker of its inputs.
        kind: the model type by which transformers knows the family, where it is not the name in the table.
    """

    auto: str
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    inputs: Inputs = lambda batch, generator: {}
    kind: str | None = None


# -- inputs ----------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 500, 12


def _tokens(batch: int, generator: torch.Generator, length: int = LENGTH) -> torch.Tensor:
    """Ids above those of special tokens."""
    return torch.randint(10, VOCABULARY, (batch, length), generator=generator)


def text(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": _tokens(batch, generator)}


def masked_text(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """With a mask that leaves out the last tokens of the last sample."""
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    mask[-1, -3:] = 0
    return {"input_ids": _tokens(batch, generator), "attention_mask": mask}


def text_to_text(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": _tokens(batch, generator), "decoder_input_ids": _tokens(batch, generator, 8)}


def images(size: int, **more: Inputs) -> Inputs:
    return tensor("pixel_values", 3, size, size, **more)


def videos(size: int, frames: int, **more: Inputs) -> Inputs:
    return tensor("pixel_values", frames, 3, size, size, **more)


def tensor(name: str, *shape: int, **more: Inputs) -> Inputs:
    """One tensor of normal noise under `name`, and whatever `more` makes besides."""

    def make(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        found = {name: torch.randn(batch, *shape, generator=generator)}
        for other in more.values():
            found |= other(batch, generator)
        return found

    return make


def decoded(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": _tokens(batch, generator, 6)}


# -- configurations --------------------------------------------------------------------------------

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

BERT = {**TOKENS, **WIDTHS, "max_position_embeddings": 64}

GROUPED = {**BERT, "num_key_value_heads": 2}

GPT = {**TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}

BART = {
    **TOKENS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

T5 = {**TOKENS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}

VIT = {**WIDTHS, "image_size": 32, "patch_size": 8}

SPEECH = {
    **WIDTHS,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
    "pad_token_id": 0,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}

MOE = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

TWO_TOWERS = {"projection_dim": 32}

SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

CONVNEXT = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}

RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]}

SERIES = {"prediction_length": 4, "context_length": 16}

# -- the table -------------------------------------------------------------------------------------

ENCODER, DECODER, TO_TEXT = "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
CLASSES, PICTURES, CTC = "AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModelForCTC"
MASKED, AUDIO = "AutoModelForMaskedLM", "AutoModelForAudioClassification"

TEXT_ENCODERS = {
    "bert": Family(CLASSES, BERT, masked_text),
    "roberta": Family(MASKED, {**BERT, "pad_token_id": 1, "bos_token_id": 0}, masked_text),
    "xlm-roberta": Family(ENCODER, {**BERT, "pad_token_id": 1, "bos_token_id": 0}, text),
    "distilbert": Family(
        CLASSES,
        {**TOKENS, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64},
        masked_text,
    ),
    "albert": Family(MASKED, {**BERT, "embedding_size": 32}, text),
    "electra": Family(CLASSES, {**BERT, "embedding_size": 32}, text),
    "deberta": Family(
        ENCODER,
        {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        text,
    ),
    "deberta-v2": Family(
        ENCODER,
        {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
        text,
    ),
    "mpnet": Family(MASKED, {**BERT, "pad_token_id": 1, "bos_token_id": 0}, text),
    "roformer": Family(ENCODER, {**BERT, "embedding_size": 64}, text),
    "convbert": Family(ENCODER, {**BERT, "embedding_size": 64, "conv_kernel_size": 3, "head_ratio": 2}, text),
    "squeezebert": Family(ENCODER, {**BERT, "embedding_size": 64}, text),
    "mobilebert": Family(
        ENCODER,
        {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
        text,
    ),
    "fnet": Family(ENCODER, {**BERT, "tpu_short_seq_length": LENGTH}, text),
    "nystromformer": Family(ENCODER, {**BERT, "segment_means_seq_len": LENGTH, "num_landmarks": LENGTH}, text),
    "big_bird": Family(ENCODER, {**BERT, "attention_type": "original_full"}, text),
    "ernie": Family(ENCODER, BERT, text),
    "megatron-bert": Family(ENCODER, BERT, text),
    "rembert": Family(ENCODER, {**BERT, "input_embedding_size": 32, "output_embedding_size": 32}, text),
    "layoutlm": Family(ENCODER, {**BERT, "max_2d_position_embeddings": 64}, text),
    "lilt": Family(ENCODER, {**BERT, "hidden_size": 96, "pad_token_id": 1}, text),
    "ibert": Family(ENCODER, {**BERT, "pad_token_id": 1}, text),
    "esm": Family(MASKED, {**BERT, "pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"}, text),
    "funnel": Family(
        "FunnelModel",
        {**TOKENS, "block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128},
        text,
    ),
    "xlnet": Family(ENCODER, {**TOKENS, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}, text),
    "xlm": Family(
        ENCODER,
        {"vocab_size": VOCABULARY, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        text,
    ),
    "canine": Family(
        ENCODER,
        {**WIDTHS, "max_position_embeddings": 64, "num_hash_buckets": 64, "local_transformer_stride": 128},
        text,
    ),
    "longformer": Family(ENCODER, {**BERT, "attention_window": 8, "pad_token_id": 1}, text),
    "modernbert": Family(
        MASKED,
        {**BERT, "sep_token_id": 2, "cls_token_id": 1, "local_attention": 8, "reference_compile": False},
        text,
    ),
    "splinter": Family(ENCODER, BERT, text),
    "mra": Family(ENCODER, {**BERT, "max_position_embeddings": 64}, text),
    "yoso": Family(ENCODER, {**BERT, "use_expectation": True}, text),
    "data2vec-text": Family(ENCODER, {**BERT, "pad_token_id": 1}, text),
    "xmod": Family(ENCODER, {**BERT, "pad_token_id": 1, "languages": ["en_XX"], "default_language": "en_XX"}, text),
    "nomic_bert": Family(ENCODER, BERT, text),
    "eurobert": Family(ENCODER, GROUPED, text),
}

TEXT_DECODERS = {
    "gpt2": Family(DECODER, GPT, text),
    "gpt_neo": Family(
        DECODER,
        {
            **TOKENS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
        },
        text,
    ),
    "gpt_neox": Family(DECODER, BERT, text),
    "gptj": Family(DECODER, {**GPT, "rotary_dim": 8}, text),
    "gpt_bigcode": Family(DECODER, GPT, text),
    "codegen": Family(DECODER, {**GPT, "rotary_dim": 8, "n_ctx": 64}, text),
    "openai-gpt": Family(DECODER, GPT, text),
    "ctrl": Family(DECODER, {**GPT, "dff": 128}, text),
    "imagegpt": Family(ENCODER, GPT, text),
    "opt": Family(DECODER, {**BERT, "ffn_dim": 128, "word_embed_proj_dim": 64}, text),
    "bloom": Family(DECODER, {**TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4}, text),
    "falcon": Family(DECODER, {**BERT, "num_kv_heads": 1, "new_decoder_architecture": False}, text),
    "mpt": Family(DECODER, {**TOKENS, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, text),
    "llama": Family(DECODER, GROUPED, text),
    "mistral": Family(DECODER, {**GROUPED, "sliding_window": 8}, text),
    "mixtral": Family(DECODER, {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, text),
    "qwen2": Family(DECODER, GROUPED, text),
    "qwen2_moe": Family(DECODER, {**MOE, "shared_expert_intermediate_size": 64}, text),
    "qwen3": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "qwen3_moe": Family(DECODER, {**MOE, "head_dim": 16}, text),
    "gemma": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "gemma2": Family(DECODER, {**GROUPED, "head_dim": 16, "sliding_window": 8}, text),
    "gemma3_text": Family(DECODER, {**GROUPED, "head_dim": 16, "sliding_window": 8}, text),
    "phi": Family(DECODER, BERT, text),
    "phi3": Family(DECODER, GROUPED, text),
    "stablelm": Family(DECODER, GROUPED, text),
    "starcoder2": Family(DECODER, GROUPED, text),
    "olmo": Family(DECODER, GROUPED, text),
    "olmo2": Family(DECODER, GROUPED, text),
    "olmoe": Family(DECODER, {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}, text),
    "cohere": Family(DECODER, GROUPED, text),
    "granite": Family(DECODER, GROUPED, text),
    "granitemoe": Family(DECODER, {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, text),
    "nemotron": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "persimmon": Family(DECODER, BERT, text),
    "glm": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "glm4": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "smollm3": Family(DECODER, GROUPED, text),
    "helium": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "exaone4": Family(DECODER, {**GROUPED, "sliding_window": 8, "sliding_window_pattern": 2}, text),
    "ernie4_5": Family(DECODER, {**GROUPED, "head_dim": 16}, text),
    "gpt_oss": Family(
        DECODER,
        {**GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        text,
    ),
    "deepseek_v3": Family(
        DECODER,
        {
            **BERT,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        text,
    ),
    "xglm": Family(DECODER, {**TOKENS, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128}, text),
    "biogpt": Family(DECODER, BERT, text),
    "mamba": Family(DECODER, {**TOKENS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, text),
    "mamba2": Family(
        DECODER,
        {
            **TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "head_dim": 16,
            "num_heads": 8,
            "n_groups": 2,
            "chunk_size": 16,
        },
        text,
    ),
    "falcon_mamba": Family(DECODER, {**TOKENS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, text),
    "rwkv": Family(DECODER, {**TOKENS, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64}, text),
    "recurrent_gemma": Family(
        DECODER, {**GROUPED, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8}, text
    ),
    "jamba": Family(
        DECODER,
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
        text,
    ),
    "lfm2": Family(DECODER, {**GROUPED, "layer_types": ["conv", "full_attention"], "block_ff_dim": 128}, text),
}

TEXT_TO_TEXT = {
    "t5": Family(TO_TEXT, T5, text_to_text),
    "mt5": Family(TO_TEXT, T5, text_to_text),
    "umt5": Family(TO_TEXT, T5, text_to_text),
    "longt5": Family(TO_TEXT, {**T5, "local_radius": 7}, text_to_text),
    "switch_transformers": Family(
        TO_TEXT, {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}, text_to_text
    ),
    "bart": Family(TO_TEXT, BART, text_to_text),
    "mbart": Family(TO_TEXT, BART, text_to_text),
    "pegasus": Family(TO_TEXT, BART, text_to_text),
    "marian": Family(TO_TEXT, BART, text_to_text),
    "blenderbot": Family(TO_TEXT, BART, text_to_text),
    "m2m_100": Family(TO_TEXT, BART, text_to_text),
    "plbart": Family(TO_TEXT, BART, text_to_text),
    "prophetnet": Family(
        TO_TEXT,
        {
            **TOKENS,
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        text_to_text,
    ),
    "led": Family(
        TO_TEXT,
        {**BART, "attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
        text_to_text,
    ),
}

VISION = {
    "vit": Family(PICTURES, VIT, images(32)),
    "deit": Family("DeiTForImageClassification", VIT, images(32)),
    "beit": Family(PICTURES, {**VIT, "use_relative_position_bias": True}, images(32)),
    "data2vec-vision": Family(PICTURES, {**VIT, "use_relative_position_bias": True}, images(32)),
    "vit_msn": Family(PICTURES, VIT, images(32)),
    "ijepa": Family(PICTURES, VIT, images(32)),
    "dinov2": Family(PICTURES, {**VIT, "mlp_ratio": 2}, images(32)),
    "dinov2_with_registers": Family(PICTURES, {**VIT, "mlp_ratio": 2}, images(32)),
    "dinov3_vit": Family(ENCODER, VIT, images(32)),
    "yolos": Family(
        "AutoModelForObjectDetection", {**VIT, "image_size": [32, 32], "num_detection_tokens": 5}, images(32)
    ),
    "swin": Family(PICTURES, SWIN, images(64)),
    "swinv2": Family(PICTURES, SWIN, images(64)),
    "swin2sr": Family(
        "AutoModelForImageToImage",
        {"image_size": 16, "patch_size": 1, "embed_dim": 32, "depths": [2], "num_heads": [4], "window_size": 8},
        images(16),
    ),
    "convnext": Family(PICTURES, CONVNEXT, images(64)),
    "convnextv2": Family(PICTURES, CONVNEXT, images(64)),
    "dinov3_convnext": Family(ENCODER, CONVNEXT, images(64)),
    "segformer": Family(
        "AutoModelForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64},
        images(64),
    ),
    "pvt": Family(
        PICTURES,
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
        images(64),
    ),
    "pvt_v2": Family(
        PICTURES,
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
        images(64),
    ),
    "mobilevit": Family(
        PICTURES,
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 128]},
        images(64),
    ),
    "mobilevitv2": Family(PICTURES, {"image_size": 64, "width_multiplier": 0.5}, images(64)),
    "mobilenet_v1": Family(PICTURES, {"image_size": 64, "depth_multiplier": 0.5}, images(64)),
    "mobilenet_v2": Family(PICTURES, {"image_size": 64, "depth_multiplier": 0.5}, images(64)),
    "resnet": Family(
        PICTURES, {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1]}, images(64)
    ),
    "regnet": Family(
        PICTURES,
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1], "groups_width": 16},
        images(64),
    ),
    "bit": Family(
        PICTURES,
        {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1], "num_groups": 8},
        images(64),
    ),
    "cvt": Family(PICTURES, {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, images(64)),
    "levit": Family(
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        images(64),
    ),
    "poolformer": Family(PICTURES, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, images(64)),
    "swiftformer": Family(
        PICTURES, {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64]}, images(64)
    ),
    "focalnet": Family(PICTURES, {"image_size": 64, "embed_dim": 32, "depths": [1, 1, 2, 1]}, images(64)),
    "efficientnet": Family(
        PICTURES, {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, images(64)
    ),
    "hiera": Family(
        PICTURES,
        {"image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 2, 4], "depths": [1, 1, 2], "num_query_pool": 2},
        images(64),
    ),
    "hgnet_v2": Family(PICTURES, {}, images(64)),
    "textnet": Family(PICTURES, {"image_size": [64, 64]}, images(64)),
    "vit_mae": Family(ENCODER, {**VIT, "mask_ratio": 0.0}, images(32)),
    "vitdet": Family(ENCODER, {**VIT, "pretrain_image_size": 32}, images(32)),
    "dpt": Family(
        "AutoModelForDepthEstimation",
        {
            **VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
        images(32),
    ),
    "glpn": Family(
        "AutoModelForDepthEstimation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
            "num_attention_heads": [1, 2, 3, 4],
        },
        images(64),
    ),
    "upernet": Family(
        "AutoModelForSemanticSegmentation",
        {
            "hidden_size": 64,
            "auxiliary_channels": 32,
            "auxiliary_in_channels": 48,
            "backbone_config": {
                "model_type": "convnext",
                **CONVNEXT,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
        images(64),
    ),
    "detr": Family(
        "AutoModelForObjectDetection",
        {**BART, "num_queries": 5, "backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage4"]}},
        images(64),
    ),
    "timesformer": Family("AutoModelForVideoClassification", {**VIT, "num_frames": 2}, videos(32, 2)),
    "videomae": Family("AutoModelForVideoClassification", {**VIT, "num_frames": 4}, videos(32, 4)),
    "vivit": Family(
        "AutoModelForVideoClassification",
        {**WIDTHS, "image_size": 32, "num_frames": 4, "tubelet_size": [2, 8, 8]},
        videos(32, 4),
    ),
    "sam2_hiera_det_model": Family(
        ENCODER,
        {
            "hidden_size": 32,
            "num_attention_heads": 1,
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [32, 64, 128, 256],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "global_attention_blocks": [3],
        },
        images(64),
    ),
}

SOUND = {
    "wav2vec2": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "hubert": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "wavlm": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "unispeech": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "unispeech-sat": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "data2vec-audio": Family(
        CTC, {**SPEECH, "conv_pos_kernel_size": 7, "num_conv_pos_embeddings": 2}, tensor("input_values", 2000)
    ),
    "wav2vec2-conformer": Family(CTC, SPEECH, tensor("input_values", 2000)),
    "sew": Family(CTC, {**SPEECH, "squeeze_factor": 2}, tensor("input_values", 2000)),
    "wav2vec2-bert": Family(
        CTC,
        {
            **WIDTHS,
            "vocab_size": 40,
            "pad_token_id": 0,
            "feature_projection_input_dim": 32,
            "output_hidden_size": 64,
            "apply_spec_augment": False,
            "mask_time_prob": 0.0,
        },
        tensor("input_features", 40, 32),
    ),
    "whisper": Family(
        "AutoModelForSpeechSeq2Seq",
        {
            **BART,
            "num_mel_bins": 20,
            "max_source_positions": 30,
            "max_target_positions": 20,
            "begin_suppress_tokens": None,
            "suppress_tokens": None,
        },
        tensor("input_features", 20, 60, target=decoded),
    ),
    "moonshine": Family(
        "AutoModelForSpeechSeq2Seq",
        {
            **TOKENS,
            "hidden_size": 64,
            "intermediate_size": 128,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "decoder_start_token_id": 1,
        },
        tensor("input_values", 4000, target=decoded),
    ),
    "speech_to_text": Family(
        "AutoModelForSpeechSeq2Seq",
        {
            **BART,
            "num_conv_layers": 2,
            "conv_kernel_sizes": [5, 5],
            "conv_channels": 64,
            "input_feat_per_channel": 20,
            "max_source_positions": 100,
            "max_target_positions": 30,
        },
        tensor("input_features", 60, 20, target=decoded),
    ),
    "audio-spectrogram-transformer": Family(
        AUDIO,
        {**WIDTHS, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16},
        tensor("input_values", 32, 16),
    ),
    "clap_audio_model": Family(
        "ClapAudioModel",
        {
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "window_size": 4,
            "patch_embeds_hidden_size": 32,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "hidden_size": 64,
            "num_classes": 10,
        },
        tensor("input_features", 1, 64, 16),
    ),
    "encodec": Family(
        ENCODER,
        {
            "num_filters": 8,
            "hidden_size": 32,
            "codebook_dim": 32,
            "upsampling_ratios": [4, 2],
            "codebook_size": 64,
            "num_lstm_layers": 1,
        },
        tensor("input_values", 1, 1600),
    ),
    "univnet": Family(
        ENCODER,
        {
            "model_hidden_channels": 16,
            "model_in_channels": 16,
            "num_mel_bins": 20,
            "kernel_predictor_hidden_channels": 16,
            "kernel_predictor_conv_size": 3,
        },
        tensor("input_features", 10, 20),
    ),
}

_PAIR = {"text_config": {**BERT, **TWO_TOWERS}, "vision_config": {**VIT, **TWO_TOWERS}, **TWO_TOWERS}

MULTIMODAL = {
    "clip": Family(ENCODER, _PAIR, images(32, text=text)),
    "siglip": Family(ENCODER, {"text_config": BERT, "vision_config": VIT}, images(32, text=text)),
    "chinese_clip": Family(ENCODER, _PAIR, images(32, text=text)),
    "altclip": Family(ENCODER, _PAIR, images(32, text=text)),
    "clipseg": Family(
        ENCODER,
        _PAIR,
        images(32, text=text),
    ),
    "metaclip_2": Family(ENCODER, _PAIR, images(32, text=text)),
    "x_clip": Family(
        ENCODER,
        {
            **_PAIR,
            "vision_config": {
                **VIT,
                "num_frames": 2,
                "mit_hidden_size": 32,
                "mit_intermediate_size": 64,
                "mit_num_attention_heads": 4,
            },
            "prompt_num_attention_heads": 4,
        },
        videos(32, 2, text=text),
        kind="xclip",
    ),
    "blip": Family(
        ENCODER,
        {"text_config": {**BERT, "encoder_hidden_size": 64}, "vision_config": VIT, **TWO_TOWERS},
        images(32, text=text),
    ),
    "groupvit": Family(
        ENCODER,
        {
            "text_config": BERT,
            "vision_config": {
                **VIT,
                "depths": [2, 2, 2],
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 4],
            },
            "projection_dim": 32,
            "projection_intermediate_dim": 64,
        },
        images(32, text=text),
    ),
    "owlvit": Family(
        ENCODER,
        _PAIR,
        images(32, text=text),
    ),
    "align": Family(
        ENCODER,
        {
            "text_config": BERT,
            "vision_config": {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 64},
            "projection_dim": 160,
        },
        images(64, text=text),
    ),
    "vilt": Family(ENCODER, {**BERT, **VIT, "max_image_length": -1}, images(32, text=text)),
    "flava": Family(
        ENCODER,
        {
            "image_config": {**VIT},
            "text_config": BERT,
            "multimodal_config": WIDTHS,
            "projection_dim": 32,
            "hidden_size": 64,
        },
        images(32, text=text),
    ),
    "git": Family(DECODER, {**BERT, "vision_config": VIT}, images(32, text=text)),
    "bridgetower": Family(
        ENCODER,
        {**WIDTHS, "text_config": {**BERT, "pad_token_id": 1}, "vision_config": {**VIT}},
        images(32, text=text),
    ),
    "visual_bert": Family(ENCODER, {**BERT, "visual_embedding_dim": 32}, tensor("visual_embeds", 4, 32, text=text)),
    "lxmert": Family(
        ENCODER,
        {**BERT, "l_layers": 2, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 32},
        tensor("visual_feats", 4, 32, text=text, boxes=tensor("visual_pos", 4, 4)),
    ),
    "layoutlmv3": Family(
        ENCODER,
        {
            **BERT,
            "input_size": 32,
            "patch_size": 8,
            "coordinate_size": 12,
            "shape_size": 8,
            "visual_embed": True,
            "pad_token_id": 1,
        },
        images(32, text=text),
    ),
    "trocr": Family(DECODER, {**BART, "max_position_embeddings": 64}, text),
}

OTHER = {
    "patchtst": Family(
        "PatchTSTForPrediction",
        {
            "num_input_channels": 2,
            **SERIES,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
        },
        tensor("past_values", 16, 2),
    ),
    "patchtsmixer": Family(
        "PatchTSMixerForPrediction",
        {"num_input_channels": 2, **SERIES, "patch_length": 4, "patch_stride": 4, "d_model": 32, "num_layers": 2},
        tensor("past_values", 16, 2),
    ),
    "perceiver": Family(
        ENCODER,
        {
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 64,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        tensor("inputs", 12, 64),
    ),
}

FAMILIES = {**TEXT_ENCODERS, **TEXT_DECODERS, **TEXT_TO_TEXT, **VISION, **SOUND, **MULTIMODAL, **OTHER}


def names() -> list[str]:
    return list(FAMILIES)


def build(name: str) -> Case:
    declare_torchvision_ops()
    import transformers

    transformers.logging.set_verbosity_error()
    family = FAMILIES[name]
    config = transformers.AutoConfig.for_model(family.kind or name, **family.config)
    torch.manual_seed(0)
    cls = getattr(transformers, family.auto)
    model = cls.from_config(config) if family.auto.startswith("AutoModel") else cls(config)
    return Case(model.eval(), lambda batch: family.inputs(batch, torch.Generator().manual_seed(batch)))
