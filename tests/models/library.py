"""Families of the transformers library, from configurations of a few thousand parameters and random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
)
from transformers.utils import logging

from .family import Family
from .tasks import (
    CLASSES,
    END,
    LENGTH,
    PAD,
    START,
    VOCABULARY,
    captions,
    class_losses,
    pictures,
    recordings,
    sequences,
    shifted_right,
    texts,
    token_losses,
    translations,
)

logging.set_verbosity_error()

WIDTH, LAYERS, HEADS = 16, 2, 2
SPREAD = 0.15  # of weights: as much of 1 / sqrt(width) as 0.02 is where the width is usual
SPECIAL = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": START}
PICTURE = (3, 16, 16)


def make(kind: Any, name: str, **settings: Any) -> nn.Module:
    """Return a model of random weights, without dropout."""
    config = AutoConfig.for_model(name, **settings)
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        for key, value in vars(part).items():
            if isinstance(value, float) and "drop" in key:
                setattr(part, key, 0.0)
            elif key in ("initializer_range", "init_std"):
                setattr(part, key, SPREAD)
    return kind.from_config(config).train()


def sized(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the usual tiny sizes, and what a family sets itself."""
    usual = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH, "max_position_embeddings": 4 * LENGTH, **SPECIAL,
    }  # fmt: skip
    return {key: value for key, value in {**usual, **settings}.items() if value is not None}


def language_model(name: str, **settings: Any) -> Family:
    """Predicts each next token."""

    def losses(model: nn.Module, tokens: Tensor) -> Tensor:
        return token_losses(model(input_ids=tokens).logits[:, :-1], tokens[:, 1:])

    return Family(lambda: make(AutoModelForCausalLM, name, **sized(settings)), sequences, losses)


def masked_model(name: str, **settings: Any) -> Family:
    """Fills in every other token."""

    def losses(model: nn.Module, tokens: Tensor) -> Tensor:
        hidden = torch.arange(tokens.shape[1]) % 2 == 1
        logits = model(input_ids=torch.where(hidden, PAD, tokens)).logits
        return token_losses(logits[:, hidden], tokens[:, hidden])

    return Family(lambda: make(AutoModelForMaskedLM, name, **sized(settings)), sequences, losses)


def classifier(name: str, **settings: Any) -> Family:
    """Reads padded texts and tells their class."""

    def losses(model: nn.Module, tokens: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return class_losses(model(input_ids=tokens, attention_mask=mask).logits, y)

    chosen = sized({"num_labels": CLASSES, **settings})
    return Family(lambda: make(AutoModelForSequenceClassification, name, **chosen), texts, losses)


def image_classifier(name: str, **settings: Any) -> Family:
    """Tells the class of a picture."""

    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return class_losses(model(pixel_values=x).logits, y)

    settings = {"num_labels": CLASSES, **settings}
    return Family(lambda: make(AutoModelForImageClassification, name, **settings), pictures(*PICTURE), losses)


def image_transformer(name: str, **settings: Any) -> Family:
    """An image classifier of the usual tiny sizes."""
    usual = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH, "image_size": PICTURE[-1], "patch_size": 8,
    }  # fmt: skip
    return image_classifier(name, **{**usual, **settings})


def translator(name: str, **settings: Any) -> Family:
    """Reads a source and says its target."""

    def losses(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
        return token_losses(model(input_ids=source, decoder_input_ids=shifted_right(target)).logits, target)

    return Family(lambda: make(AutoModelForSeq2SeqLM, name, **settings, **SPECIAL), translations, losses)


ENCODER_DECODER = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH, "max_position_embeddings": 4 * LENGTH,
}  # fmt: skip


def whisper() -> Family:
    """Listens to features and says what is in them."""
    frames, mels = 8, 8  # positions behind the strided convolution, features of each before

    def losses(model: nn.Module, heard: Tensor, target: Tensor) -> Tensor:
        return token_losses(model(input_features=heard, decoder_input_ids=shifted_right(target)).logits, target)

    settings = {**ENCODER_DECODER, **SPECIAL, "num_mel_bins": mels, "max_source_positions": frames}
    settings |= {"max_target_positions": LENGTH, "suppress_tokens": None, "begin_suppress_tokens": None}
    return Family(lambda: make(AutoModelForSpeechSeq2Seq, "whisper", **settings), recordings(mels, 2 * frames), losses)


def checkpointed(family: Family) -> Family:
    """The same, recomputing its layers in backward."""

    def build() -> nn.Module:
        model: Any = family.build()
        model.gradient_checkpointing_enable()
        return model

    return replace(family, build=build)


def clip(contrast: bool = False) -> Family:
    """Tells whether pictures and texts belong together: pair by pair, or each picture among all texts."""
    text = sized({"projection_dim": WIDTH})
    text["eos_token_id"] = PAD  # the pooled position
    vision = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "projection_dim": WIDTH,
        "intermediate_size": 2 * WIDTH, "image_size": PICTURE[-1], "patch_size": 8,
    }  # fmt: skip

    def losses(model: nn.Module, x: Tensor, tokens: Tensor, mask: Tensor, sign: Tensor) -> Tensor:
        out = model(input_ids=tokens, attention_mask=mask, pixel_values=x)
        if contrast:
            similar = out.image_embeds @ out.text_embeds.T * _scale(model)
            return class_losses(similar, torch.arange(len(x)))
        similar = (out.image_embeds * out.text_embeds).sum(1) * _scale(model) * 0.1
        return -F.logsigmoid(similar * sign)

    def build() -> nn.Module:
        return make(AutoModel, "clip", text_config=text, vision_config=vision, projection_dim=WIDTH)

    return Family(build, captions(*PICTURE), losses, apart=not contrast)


def _scale(model: nn.Module) -> Tensor:
    return model.get_parameter("logit_scale").exp()


def wav2vec2() -> Family:
    """Tells the class of a recording."""

    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return class_losses(model(input_values=x).last_hidden_state.mean(1)[:, :CLASSES], y)

    settings = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH,
        "conv_dim": (8, 8), "conv_kernel": (8, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
    }  # fmt: skip
    return Family(lambda: make(AutoModel, "wav2vec2", **settings), pictures(128), losses)


LIBRARY: dict[str, Family] = {
    "gpt2": language_model("gpt2"),
    "gpt-neox": language_model("gpt_neox"),
    "opt": language_model("opt", word_embed_proj_dim=WIDTH, ffn_dim=2 * WIDTH),
    "bloom": language_model("bloom"),
    "llama": language_model("llama"),
    "llama-tied": language_model("llama", tie_word_embeddings=True),
    "llama-checkpointed": checkpointed(language_model("llama")),
    "qwen2": language_model("qwen2", num_key_value_heads=1),
    "gemma": language_model("gemma", num_key_value_heads=1, head_dim=8),
    "phi": language_model("phi"),
    "mixtral": language_model("mixtral", num_key_value_heads=1, num_local_experts=4, experts_implementation="eager"),
    "mamba": language_model("mamba", state_size=4),
    "bert": classifier("bert"),
    "bert-checkpointed": checkpointed(classifier("bert")),
    "bert-masked": masked_model("bert"),
    "roberta": classifier("roberta"),
    "distilbert": classifier("distilbert", hidden_dim=2 * WIDTH),
    "albert": classifier("albert", embedding_size=8, num_hidden_layers=3),
    "electra": classifier("electra", embedding_size=8),
    "deberta": classifier("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "xlnet": classifier("xlnet", d_inner=2 * WIDTH, d_head=WIDTH // HEADS, max_position_embeddings=None),
    "t5": translator(
        "t5", vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=LAYERS, num_heads=HEADS
    ),
    "bart": translator("bart", **ENCODER_DECODER),
    "marian": translator("marian", **ENCODER_DECODER),
    "whisper": whisper(),
    "wav2vec2": wav2vec2(),
    "clip": clip(),
    "clip-contrast": clip(contrast=True),
    "vit": image_transformer("vit"),
    "dinov2": image_transformer("dinov2", mlp_ratio=2),
    "beit": image_transformer("beit", use_relative_position_bias=True),
    "swin": image_classifier(
        "swin", image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    ),
    "convnext": image_classifier("convnext", patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[2, 2]),
    "resnet": image_classifier("resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic"),
}
