"""A double of OpenVLA and of OpenVLA-OFT.

Kept from the real ones: class names, attribute paths and shapes; the closure that stands in for the towers' forward
(copies run the original's weights, pickle fails); who calls what (OpenVLA: ``vision_backbone``, ``projector``, visual
tokens after the first word; OFT: ``_process_vision_features`` from the forward and from ``predict_action``, which does
not pass the forward, then a proprio token and a timestep token); one token means a step of decoding; OFT finds action
tokens in the labels, and wraps its backbone for FiLM. The towers are small and need no timm. So that ``generate`` sees
its image once in every transformers, a cache that is there but empty counts as none, and it may be called ``cache``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORE_INDEX, ACTION_TOKEN_BEGIN_IDX, STOP_INDEX = -100, 43, 2
CHUNK, ACTION_DIM, PROPRIO_DIM = 2, 3, 4
SIDE, PATCH = 56, 14
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def unpack_tuple(fn: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    return wrapper


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.grid_size = (SIDE // PATCH, SIDE // PATCH)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Mixes tokens by their mean, then each by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.mix(x.mean(dim=1, keepdim=True)))
        return x + torch.tanh(self.mlp(x))


class Tower(nn.Module):
    """What is used of a vision transformer of timm."""

    def __init__(self, width: int, prefix: int, default_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.embed_dim = self.num_features = width
        self.num_prefix_tokens, self.default_cfg = prefix, default_cfg
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.ones(1, prefix, width)) if prefix else None
        self.blocks = nn.Sequential(*[Block(width) for _ in range(3)])

    def get_intermediate_layers(self, x: Tensor, language: Tensor | None = None, n: Any = ()) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        taken = []
        for index, block in enumerate(self.blocks):
            x = block(x) if language is None else block(x, language)
            if index in n:
                taken.append(x[:, self.num_prefix_tokens :])
        return tuple(taken)


class PrismaticVisionBackbone(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.use_fused_vision_backbone = fused
        self.featurizer = self._made(Tower(24, 2, IMAGENET) if fused else Tower(24, 0, HALF))
        self.embed_dim = self.featurizer.embed_dim
        if fused:
            self.fused_featurizer = self._made(Tower(16, 0, HALF))
            self.embed_dim += self.fused_featurizer.embed_dim

    @staticmethod
    def _made(tower: Tower) -> Tower:
        tower.forward = unpack_tuple(partial(tower.get_intermediate_layers, n={len(tower.blocks) - 2}))
        return tower

    def forward(self, pixel_values: Tensor) -> Tensor:
        if not self.use_fused_vision_backbone:
            return self.featurizer(pixel_values)
        first, second = torch.split(pixel_values, [3, 3], dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class OFTVisionBackbone(PrismaticVisionBackbone):
    num_images_in_input = 1

    def get_num_patches(self) -> int:
        return self.featurizer.patch_embed.num_patches

    def get_num_images_in_input(self) -> int:
        return self.num_images_in_input

    def set_num_images_in_input(self, num_images_in_input: int) -> None:
        self.num_images_in_input = num_images_in_input

    def forward(self, pixel_values: Tensor, *language: Tensor) -> Tensor:
        if self.num_images_in_input == 1 and not self.use_fused_vision_backbone:
            return self.featurizer(pixel_values, *language)
        assert self.use_fused_vision_backbone, "several images need both towers"
        encoded = []
        for image in torch.split(pixel_values, [6] * self.num_images_in_input, dim=1):
            first, second = torch.split(image, [3, 3], dim=1)
            encoded.append(
                torch.cat([self.featurizer(first, *language), self.fused_featurizer(second, *language)], dim=2)
            )
        return torch.cat(encoded, dim=1)


class FiLMedBlock(nn.Module):
    def __init__(self, block: nn.Module, width: int, llm_dim: int) -> None:
        super().__init__()
        self.block, self.scale, self.shift = block, nn.Linear(llm_dim, width), nn.Linear(llm_dim, width)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        return self.block(x) * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]


class FiLMedPrismaticVisionBackbone(nn.Module):
    def __init__(self, vision_backbone: Any, llm_dim: int) -> None:
        super().__init__()
        self.vision_backbone, self.llm_dim = vision_backbone, llm_dim
        for name in ("featurizer", "fused_featurizer"):
            tower = getattr(vision_backbone, name)
            tower.blocks = nn.Sequential(*[FiLMedBlock(block, tower.num_features, llm_dim) for block in tower.blocks])
            vision_backbone._made(tower)

    def get_num_patches(self) -> int:
        return self.vision_backbone.get_num_patches()

    def get_num_images_in_input(self) -> int:
        return self.vision_backbone.get_num_images_in_input()

    def set_num_images_in_input(self, num_images_in_input: int) -> None:
        self.vision_backbone.set_num_images_in_input(num_images_in_input)

    def forward(self, pixel_values: Tensor, language_embeddings: Tensor) -> Tensor:
        return self.vision_backbone(pixel_values, language_embeddings.mean(dim=1))


class PrismaticProjector(nn.Module):
    def __init__(self, fused: bool, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        wide = 4 * vision_dim if fused else llm_dim
        self.fc1, self.fc2 = nn.Linear(vision_dim, wide), nn.Linear(wide, llm_dim)
        if fused:
            self.fc3 = nn.Linear(llm_dim, llm_dim)
        self.use_fused_vision_backbone, self.act_fn1, self.act_fn2 = fused, nn.GELU(), nn.GELU()

    def forward(self, img_patches: Tensor) -> Tensor:
        out = self.fc2(self.act_fn1(self.fc1(img_patches)))
        return self.fc3(self.act_fn2(out)) if self.use_fused_vision_backbone else out


class OpenVLAConfig(PretrainedConfig):
    model_type = "openvla_double"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, fused: bool = True, norm_stats: Any = None, **kwargs: Any) -> None:
        if not isinstance(text_config, LlamaConfig):
            text_config = LlamaConfig(**(text_config or {}))
        self.text_config, self.fused, self.norm_stats = text_config, fused, norm_stats
        super().__init__(**kwargs)


class PrismaticForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = OpenVLAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    backbone_class = PrismaticVisionBackbone

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.vision_backbone = self.backbone_class(config.fused)
        self.llm_dim = config.text_config.hidden_size
        self.projector = PrismaticProjector(config.fused, self.vision_backbone.embed_dim, self.llm_dim)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=config._attn_implementation
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own, in every transformers."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def forward(
        self, input_ids=None, attention_mask=None, pixel_values=None, labels=None, inputs_embeds=None,
        past_key_values=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        options = {"use_cache": bool(use_cache) and not self.training, "output_hidden_states": output_hidden_states}
        if input_ids.shape[1] == 1:
            assert past_key_values is not None, "one token without a cache"
            return self.language_model(input_ids=input_ids, past_key_values=past_key_values, **options)
        if pixel_values is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options)
        visual = self.projector(self.vision_backbone(pixel_values))
        return self._answer(self.get_input_embeddings()(input_ids), visual, attention_mask, labels, options)

    def _answer(self, words, visual, attention_mask, labels, options) -> CausalLMOutputWithPast:
        """The language model's answer to the words with the visual tokens after the first of them."""
        batch, count = visual.shape[:2]
        embeds = torch.cat([words[:, :1], visual, words[:, 1:]], dim=1)
        if attention_mask is not None:
            ones = attention_mask.new_ones(batch, count)
            attention_mask = torch.cat([attention_mask[:, :1], ones, attention_mask[:, 1:]], dim=1)
        if labels is not None:
            ignored = labels.new_full((batch, count), IGNORE_INDEX)
            labels = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1)
        return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels, **options)

    def prepare_inputs_for_generation(
        self, input_ids=None, past_key_values=None, inputs_embeds=None, pixel_values=None, attention_mask=None, **kwargs
    ):
        if input_ids.shape[0] > 1:
            raise ValueError("generation takes one prompt")
        past_key_values = past_key_values or kwargs.get("cache")
        if past_key_values is not None and past_key_values.get_seq_length() == 0:
            past_key_values = None
        return {
            "input_ids": input_ids if past_key_values is None else input_ids[:, -1:],
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
        }


class OpenVLAForActionPrediction(PrismaticForConditionalGeneration):
    def predict_action(self, input_ids: Tensor, unnorm_key: str | None = None, **kwargs: Any) -> Tensor:
        generated = self.generate(input_ids, max_new_tokens=ACTION_DIM, **kwargs)
        return generated[0, -ACTION_DIM:]


def action_mask(labels: Tensor) -> Tensor:
    return labels > ACTION_TOKEN_BEGIN_IDX


class OFTForActionPrediction(OpenVLAForActionPrediction):
    """OpenVLA-OFT; there it has the same class name as OpenVLA."""

    backbone_class = OFTVisionBackbone

    def _process_vision_features(self, pixel_values, language_embeddings=None, use_film=False) -> Tensor:
        given = (pixel_values, language_embeddings) if use_film else (pixel_values,)
        return self.projector(self.vision_backbone(*given))

    def _visual(self, pixel_values, words, mask, use_film, proprio, proprio_projector) -> Tensor:
        language = words[~mask].reshape(words.shape[0], -1, words.shape[2])
        visual = self._process_vision_features(pixel_values, language, use_film)
        if proprio is not None and proprio_projector is not None:
            token = proprio_projector(proprio.reshape(visual.shape[0], -1).to(visual.dtype))
            visual = torch.cat([visual, token[:, None]], dim=1)
        return visual

    def _noisy(self, words: Tensor, mask: Tensor, actions: Tensor, projector: nn.Module) -> Tensor:
        features = projector(actions.reshape(actions.shape[0], -1)[..., None])
        return words.masked_scatter(mask[..., None], features.to(words.dtype))

    def forward(
        self, input_ids=None, attention_mask=None, pixel_values=None, labels=None, inputs_embeds=None,
        past_key_values=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None,
        proprio=None, proprio_projector=None, noisy_actions=None, noisy_action_projector=None,
        diffusion_timestep_embeddings=None, use_film=False,
    ):  # fmt: skip
        if input_ids.shape[1] == 1 or pixel_values is None:
            return super().forward(
                input_ids, attention_mask, None, labels, past_key_values=past_key_values, use_cache=use_cache
            )
        words, mask = self.get_input_embeddings()(input_ids), action_mask(labels)
        visual = self._visual(pixel_values, words, mask, use_film, proprio, proprio_projector)
        if diffusion_timestep_embeddings is not None:
            visual = torch.cat([visual, diffusion_timestep_embeddings], dim=1)
        if noisy_actions is not None:
            words = self._noisy(words, mask, noisy_actions, noisy_action_projector)
        else:
            words = words * ~mask[..., None]
        options = {"use_cache": bool(use_cache) and not self.training, "output_hidden_states": output_hidden_states}
        return self._answer(words, visual, attention_mask, labels, options)

    def predict_action(
        self, input_ids=None, unnorm_key=None, proprio=None, proprio_projector=None, action_head=None,
        noisy_action_projector=None, use_film=False, **kwargs,
    ):  # fmt: skip
        count = input_ids.shape[1] - 1
        extra = input_ids.new_ones(input_ids.shape[0], CHUNK * ACTION_DIM + 1)
        ids = torch.cat([input_ids, extra], dim=1)
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[:, input_ids.shape[1] : -1] = ACTION_TOKEN_BEGIN_IDX + 1
        labels[:, -1] = STOP_INDEX
        attention_mask = F.pad(kwargs["attention_mask"], (0, extra.shape[1]), value=1)
        words, mask = self.get_input_embeddings()(ids), action_mask(labels)
        proprio = None if proprio is None else torch.as_tensor(proprio)
        visual = self._visual(kwargs["pixel_values"], words, mask, use_film, proprio, proprio_projector)
        options = {"output_hidden_states": True}

        def acted(words: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
            output = self._answer(words, visual, attention_mask, None, options)
            start = visual.shape[1] + count
            part = slice(start, start + CHUNK * ACTION_DIM)
            return output.hidden_states[-1][:, part], output.logits[:, part]

        if noisy_action_projector is not None and hasattr(action_head, "noise_scheduler"):
            actions = torch.randn(1, CHUNK, ACTION_DIM, dtype=words.dtype)
            for t in action_head.noise_scheduler.timesteps:
                step = action_head.time_encoder(torch.tensor([float(t)])).to(words.dtype)[:, None]
                noisy = self._noisy(words, mask, actions, noisy_action_projector)
                hidden, _ = acted(noisy, torch.cat([visual, step], dim=1))
                noise = action_head.predict_noise(hidden).reshape(actions.shape)
                actions = action_head.noise_scheduler.step(noise, t, actions).prev_sample
            return actions[0].detach().numpy(), hidden
        hidden, logits = acted(words * ~mask[..., None], visual)
        if action_head is None:
            return logits.argmax(dim=2)[0].reshape(CHUNK, ACTION_DIM).numpy(), hidden
        return action_head.predict_action(hidden)[0].detach().numpy(), hidden


class MLP(nn.Module):
    """Of OFT's projectors and heads."""

    def __init__(self, given: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(given, out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class L1RegressionActionHead(nn.Module):
    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.model = MLP(input_dim * ACTION_DIM, ACTION_DIM)

    def predict_action(self, hidden: Tensor) -> Tensor:
        return self.model(hidden.reshape(hidden.shape[0], CHUNK, -1))


class DiffusionActionHead(nn.Module):
    def __init__(self, input_dim: int) -> None:
        super().__init__()
        from diffusers import DDIMScheduler

        self.noise_predictor, self.width = MLP(input_dim * ACTION_DIM, ACTION_DIM), input_dim
        self.noise_scheduler = DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")

    def time_encoder(self, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None] / 100 ** torch.linspace(0, 1, self.width // 2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def predict_noise(self, hidden: Tensor) -> Tensor:
        return self.noise_predictor(hidden.reshape(hidden.shape[0], CHUNK, -1))


def double_model(model_class: Any = OpenVLAForActionPrediction, **settings: Any) -> Any:
    """A random double in eval mode; equal on every call. ``settings`` go to the config."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    config = OpenVLAConfig(text_config=text, bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.generation_config.do_sample = False
    return model.eval()
