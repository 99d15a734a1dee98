"""A double of LLaVA-NeXT's causal Qwen2 model, for images, tiles and videos.

Kept from the real one: who calls what in which order and with which shapes
(``prepare_inputs_labels_for_multimodal``, ``encode_images`` on all pictures at once, ``get_2dPool`` video by video,
newline tokens, splice), that a prompt of one token returns early, that ``generate`` prepares by itself and passes on
embeddings only, that modalities beyond the list given are images, and that a text row still takes an entry. The vision
tower is small.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

IMAGE_TOKEN_INDEX, IGNORE_INDEX = -200, -100
PATCH, SIDE = 14, 4


class DoubleTower(nn.Module):
    """Pictures ``[N, 3, 56, 56]`` to patch features ``[N, 16, 24]``."""

    def __init__(self, delay_load: bool = False) -> None:
        super().__init__()
        self.vision_tower_name = "double"
        self.image_processor = SimpleNamespace(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
        self.is_loaded = False
        if not delay_load:
            self.load_model()

    def load_model(self) -> None:
        self.embed = nn.Conv2d(3, 24, PATCH, stride=PATCH)
        self.is_loaded = True

    num_patches_per_side = SIDE

    def forward(self, images: Tensor) -> Tensor:
        features = self.embed(images.to(self.embed.weight.dtype)).flatten(2).transpose(1, 2)
        return torch.tanh(features).to(images.dtype)


class LlavaMetaModel:
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_tower = DoubleTower(getattr(config, "delay_load", False))
        self.mm_projector = nn.Sequential(
            nn.Linear(24, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))
        self.faster_token = nn.Parameter(torch.ones(config.hidden_size))

    def get_vision_tower(self) -> DoubleTower:
        return self.vision_tower


class LlavaMetaForCausalLM:
    def get_vision_tower(self) -> DoubleTower:
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Tensor) -> Tensor:
        return self.get_model().mm_projector(self.get_model().get_vision_tower()(images))

    def get_2dPool(self, image_feature: Tensor, stride: int = 2) -> Tensor:  # noqa: N802
        frames, _, width = image_feature.shape
        side = self.get_vision_tower().num_patches_per_side
        maps = image_feature.view(frames, side, side, width).permute(0, 3, 1, 2).contiguous()
        size = math.ceil(side / stride)
        pooled = F.interpolate(maps, size=[size, size], mode="bilinear")
        return pooled.permute(0, 2, 3, 1).reshape(frames, -1, width)

    def add_token_per_grid(self, image_feature: Tensor) -> Tensor:
        frames, count, width = image_feature.shape
        side = math.isqrt(count)
        rows = image_feature.reshape(frames * side, side, width)
        newline = self.model.image_newline.expand(frames * side, 1, width)
        return torch.cat([rows, newline], dim=1).flatten(0, 1)

    def add_token_per_frame(self, image_feature: Tensor) -> Tensor:
        newline = self.model.image_newline.expand(image_feature.shape[0], 1, -1)
        return torch.cat([image_feature, newline], dim=1)

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, modalities=["image"], image_sizes=None  # noqa: B006, E501
    ):  # fmt: skip
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        if isinstance(modalities, str):
            modalities = [modalities]
        if isinstance(images, list) or images.ndim == 5:
            entries = [picture[None] if picture.ndim == 3 else picture for picture in images]
            videos = [index for index, kind in enumerate(modalities) if kind == "video"]
            encoded = self.encode_images(torch.cat(entries)).split([entry.shape[0] for entry in entries])
            features = [self._packed(feature, index in videos) for index, feature in enumerate(encoded)]
        else:
            features = list(self.encode_images(images))
        return self._spliced(input_ids, attention_mask, labels, past_key_values, features)

    def _packed(self, feature: Tensor, video: bool) -> Tensor:
        newline = self.model.image_newline
        if not video:
            flat = feature.flatten(0, 1)
            return torch.cat([flat, newline[None]])
        pooled = self.get_2dPool(feature)
        position = self.config.mm_newline_position
        if getattr(self.config, "add_faster_video", False):
            # Forks with slow and fast frames pool the same features again, more coarsely.
            faster = self.get_2dPool(feature, 4)
            parts = [pooled[i] if i % 2 == 0 else faster[i] for i in range(feature.shape[0])]
            return torch.cat([torch.cat([part, self.model.faster_token[None]]) for part in parts])
        if position == "grid":
            return self.add_token_per_grid(pooled)
        if position == "frame":
            return self.add_token_per_frame(pooled).flatten(0, 1)
        flat = pooled.flatten(0, 1)
        return torch.cat([flat, newline[None]]) if position == "one_token" else flat

    def _spliced(self, input_ids, attention_mask, labels, past_key_values, features):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        targets = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        embeds, spliced_labels, entry = [], [], 0
        for row in range(input_ids.shape[0]):
            keep = mask[row].bool()
            ids, wanted = input_ids[row][keep], targets[row][keep]
            at = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
            words = self.get_model().embed_tokens(ids.clamp(min=0))
            if not at:
                embeds.append(torch.cat([words, features[entry][0:0]]))
                spliced_labels.append(wanted)
                entry += 1
                continue
            parts, part_labels, start = [], [], 0
            for position in at:
                parts += [words[start:position], features[entry]]
                part_labels += [wanted[start:position], wanted.new_full((features[entry].shape[0],), IGNORE_INDEX)]
                start, entry = position + 1, entry + 1
            embeds.append(torch.cat([*parts, words[start:]]))
            spliced_labels.append(torch.cat([*part_labels, wanted[start:]]))
        longest = max(e.shape[0] for e in embeds)
        padded = torch.stack([F.pad(e, (0, 0, 0, longest - e.shape[0])) for e in embeds])
        new_labels = torch.stack([F.pad(x, (0, longest - x.shape[0]), value=IGNORE_INDEX) for x in spliced_labels])
        new_mask = torch.stack([(torch.arange(longest) < e.shape[0]).to(mask.dtype) for e in embeds])
        return (
            None,
            None,
            new_mask if attention_mask is not None else None,
            past_key_values,
            padded,
            None if labels is None else new_labels,
        )


class LlavaQwenConfig(Qwen2Config):
    model_type = "llava_qwen_double"


class LlavaQwenModel(LlavaMetaModel, Qwen2Model):
    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(Qwen2ForCausalLM, LlavaMetaForCausalLM):
    config_class = LlavaQwenConfig

    def __init__(self, config: LlavaQwenConfig) -> None:
        Qwen2ForCausalLM.__init__(self, config)
        self.model = LlavaQwenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaQwenModel:
        return self.model

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, images=None, image_sizes=None, modalities=["image"], cache_position=None, **kwargs,  # noqa: B006
    ):  # fmt: skip
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, modalities, image_sizes
                )
            )
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, labels=labels, use_cache=use_cache,
        )  # fmt: skip

    @torch.no_grad()
    def generate(self, inputs=None, images=None, image_sizes=None, modalities=["image"], **kwargs):  # noqa: B006
        attention_mask, position_ids = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        if images is not None:
            inputs, position_ids, attention_mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                inputs, position_ids, attention_mask, None, None, images, modalities, image_sizes=image_sizes
            )
        else:
            embeds = self.get_model().embed_tokens(inputs)
        return super().generate(
            position_ids=position_ids, attention_mask=attention_mask, inputs_embeds=embeds, **kwargs
        )


def double_model(**settings: Any) -> LlavaQwenForCausalLM:
    """A random double in eval mode; equal on every call. ``settings`` go to the config."""
    config = LlavaQwenConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False, **{"mm_newline_position": "grid", **settings},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaQwenForCausalLM(config)
        nn.init.normal_(model.model.image_newline)
    model.generation_config.do_sample = False
    return model.eval()
