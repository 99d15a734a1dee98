"""From a conversation to the host's inputs, by its own processor and chat template; only answers are learned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...contracts.errors import RowError, SceneError, Vega3dError
from ...recipes.blocks import DataSettings
from ...scenes.rows import ScenePoints
from ...scenes.view_points import POINTS
from .conversation import Conversation, Medium, Turn, read_conversation
from .media import Video, chosen, load_image, load_video
from .released import TOKEN, fit_width

Encoded = dict[str, Any]
IGNORED = -100
#: Seconds between frames that have no time of their own, as qwen-vl-utils has it.
DEFAULT_FPS = 2.0
#: Tokens that qwen-vl-utils lets a frame of a video have.
QWEN_FRAME_TOKENS = 768


@dataclass(frozen=True)
class Piece:
    """A stretch of the prompt.

    Attributes:
        text: as the chat template writes it, with one placeholder for each medium.
        media: of this stretch.
        learned: True for an answer and the end of its turn.
    """

    text: str
    media: tuple[Medium, ...] = ()
    learned: bool = False


class Encoder:
    """Turns a row into ``input_ids``, ``attention_mask``, ``labels`` and what the host wants to know of its pictures.

    Works with every processor of transformers that takes images (and videos) and has a chat template. Picklable.

    Args:
        processor: the host's.
        settings: how rows are read.
        max_length: tokens of a sample at most; None: no limit.
        points: the branch adds positions, so world points of the scenes' views are put beside their pixels.
    """

    def __init__(
        self, processor: Any, settings: DataSettings, max_length: int | None = None, *, points: bool = False
    ) -> None:
        self.processor, self.settings, self.max_length, self.points = processor, settings, max_length, points

    def __call__(self, row: Any, root: Path | None = None) -> Encoded:
        """Encode a row, or a conversation.

        Returns:
            Tensors by name: those along the tokens are ``[1, L]``; ``labels`` is -100 but for answers.

        Raises:
            RowError: the row cannot be used.
        """
        if not isinstance(row, Conversation):
            row = read_conversation(row, self.settings, root)
        if self.settings.video_as == "images":
            pictures, row = _as_images(row, self.settings)
        else:
            pictures = {}
        parts = [self._encode(piece, first=not i, pictures=pictures) for i, piece in enumerate(self._pieces(row))]
        whole = join_tokens(parts)
        length = whole["input_ids"].shape[1]
        if self.max_length is not None and length > self.max_length:
            raise RowError(f"{length} tokens, more than max_length {self.max_length}")
        return whole

    def prompt(self, conversation: Conversation) -> str:
        """The text before the last answer as the chat template writes it, with one placeholder for each medium.

        Raises:
            RowError: as for :meth:`__call__`.
        """
        if self.settings.video_as == "images":
            _, conversation = _as_images(conversation, self.settings)
        return "".join(piece.text for piece in self._pieces(conversation)[:-1])

    def _pieces(self, conversation: Conversation) -> list[Piece]:
        """Cut what the chat template writes into prompts and answers."""
        turns = conversation.turns
        self._check_text(turns)
        messages = [_message(turn) for turn in turns]
        pieces: list[Piece] = []
        waiting: list[Medium] = []
        done, rest = 0, ""
        whole = self._template(messages)
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                waiting.extend(part for part in turn.parts if isinstance(part, Medium))
                continue
            prompt = self._template(messages[:index], add_generation_prompt=True)
            until = self._template(messages[: index + 1])
            if not (whole.startswith(until) and until.startswith(prompt)):
                raise RowError(
                    f"turn {index + 1}: the chat template writes this answer in another way once more turns follow; "
                    "split the row, so that each has one answer"
                )
            answer = until[len(prompt) :]
            kept = answer.rstrip()
            pieces.append(Piece(rest + prompt[done:], tuple(waiting)))
            pieces.append(Piece(kept, learned=True))
            # The line break after a turn is nothing to learn; it opens the next prompt.
            done, rest = len(until), answer[len(kept) :]
            waiting.clear()
        return pieces

    def _template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        text: str = self.processor.apply_chat_template(messages, tokenize=False, **options)
        return text

    def _check_text(self, turns: Sequence[Turn]) -> None:
        tokens = [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        for number, turn in enumerate(turns, 1):
            found = next((t for t in tokens if isinstance(t, str) and t in turn.text), None)
            if found is not None:
                raise RowError(f"turn {number}: its text holds the host's own placeholder {found!r}")

    def _encode(self, piece: Piece, first: bool, pictures: dict[int, Image.Image]) -> Encoded:
        tokenizer = self.processor.tokenizer
        if piece.media:
            out = self._with_media(piece, pictures)
        else:
            bos = tokenizer.bos_token
            special = first and not (bos and piece.text.startswith(bos))
            out = dict(tokenizer(piece.text, add_special_tokens=special, return_tensors="pt"))
        ids = out["input_ids"]
        if piece.learned and int(ids[0, -1]) not in tokenizer.all_special_ids and tokenizer.eos_token_id is not None:
            # Some templates end an answer with nothing that could be learned as its end.
            ids = torch.cat([ids, ids.new_tensor([[tokenizer.eos_token_id]])], dim=1)
            out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out["labels"] = ids.clone() if piece.learned else torch.full_like(ids, IGNORED)
        return out

    def _with_media(self, piece: Piece, pictures: dict[int, Image.Image]) -> Encoded:
        given: dict[str, Any] = {}
        images = [self._fitted(pictures.get(id(m)) or load_image(m)) for m in piece.media if m.kind == "image"]
        # Qwen3-VL refuses a video that does not fill one of its patches in time; its relatives fill it up.
        least = getattr(self.processor.image_processor, "temporal_patch_size", 1)
        videos = [load_video(m, self.settings).at_least(least) for m in piece.media if m.kind == "video"]
        if images:
            given["images"] = images
        if videos:
            given["videos"] = [self._frames(video) for video in videos]
            given |= self._video_options(videos)
        try:
            out = dict(self.processor(text=[piece.text], return_tensors="pt", **given))
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError) as error:
            if not given:
                raise
            # A picture of one pixel, or 200 times as wide as high; processors say so each in its own way.
            raise RowError(
                f"the processor refuses its pictures ({_sizes(images, videos)}): {type(error).__name__}: {error}"
            ) from error
        if videos and _floats(out) <= self._floats_of(images) and not any("video" in key for key in out):
            # LLaVA 1.5's and LLaVA-NeXT's take videos, and leave them out.
            raise RowError(
                f"{type(self.processor).__name__} takes no videos: it gave no pixels of a {_sizes([], videos)}. Set "
                "`data.video_as: images` (--video-as images), which gives each frame as an image"
            )
        # transformers 4.50 leaves second_per_grid_ts a list.
        out = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in out.items()}
        if self.points:
            out[POINTS] = self._world_points(piece.media, videos)
        return out

    def _world_points(self, media: Sequence[Medium], videos: Sequence[Video]) -> Tensor:
        """Of every picture and frame that the processor was given, in its order."""
        if self.settings.resize is not None:
            raise RowError(f"positions are of whole views, and data.resize {self.settings.resize} cuts them")
        frames, found = iter(videos), []
        # Qwen-VL's processors fill a patch in time with the last frame.
        unit = getattr(self.processor.image_processor, "temporal_patch_size", 1)
        for medium in media:
            places = [medium.view] if medium.kind == "image" else list(next(frames).indices)
            if medium.kind == "video":
                places += places[-1:] * (-len(places) % unit)
            found.append(_points_of(medium, places, self._crop(medium.kind)))
        return torch.cat(found)

    def _crop(self, kind: str) -> tuple[int, int] | None:
        """What the processor cuts out of the middle of pictures of that kind, (height, width)."""
        images = self.processor.image_processor
        made_by = getattr(self.processor, "video_processor", images) if kind == "video" else images
        size = getattr(made_by, "crop_size", None) if getattr(made_by, "do_center_crop", False) else None
        return None if size is None else (int(size["height"]), int(size["width"]))

    def _floats_of(self, images: Sequence[Image.Image]) -> int:
        return _floats(dict(self.processor.image_processor(images, return_tensors="pt"))) if images else 0

    def _fitted(self, picture: Image.Image) -> Image.Image:
        if self.settings.resize is None:
            return picture
        return fit_width(picture, self._qwen_unit() or TOKEN)

    def _frames(self, video: Video) -> Tensor:
        """``[T, 3, H, W]`` uint8, no larger than the settings say."""
        frames = torch.from_numpy(np.ascontiguousarray(np.stack(list(video.frames)).transpose(0, 3, 1, 2)))
        unit = self._qwen_unit()
        limit = self.settings.video_max_pixels or (unit and QWEN_FRAME_TOKENS * unit**2)
        height, width = frames.shape[2:]
        if not limit or height * width <= limit:
            return frames
        size = _size_within(height, width, limit, unit)
        smaller = torch.nn.functional.interpolate(frames.float(), size, mode="bicubic", antialias=True)
        return smaller.round().clamp(0, 255).to(torch.uint8)

    def _qwen_unit(self) -> int | None:
        """Side of a token in pixels where the processor cuts frames as Qwen-VL does."""
        images = getattr(self.processor, "image_processor", None)
        patch, merge = getattr(images, "patch_size", None), getattr(images, "merge_size", None)
        return patch * merge if isinstance(patch, int) and isinstance(merge, int) else None

    def _video_options(self, videos: Sequence[Video]) -> dict[str, Any]:
        if hasattr(self.processor, "video_processor"):
            # The frames are chosen already; when they were taken is what some hosts tell the language model.
            known = _video_keys()
            options: dict[str, Any] = {"do_sample_frames": False} if "do_sample_frames" in known else {}
            if "video_metadata" in known:
                options["video_metadata"] = [_metadata(video) for video in videos]
            return options
        if "Qwen2_5" in type(self.processor).__name__:
            return {"fps": [video.sampled_fps or DEFAULT_FPS for video in videos]}
        return {}


def join_tokens(parts: Sequence[Encoded]) -> Encoded:
    """Pieces of one sample, one after the other: tokens along the length, pictures along the first axis."""
    along = {key for part in parts for key, value in part.items() if value.shape == part["input_ids"].shape}
    # Only the processor says which tokens are pictures; text is 0 everywhere.
    keys = dict.fromkeys(key for part in parts for key in part)
    whole: Encoded = {}
    for key in keys:
        if key in along:
            missing = [torch.zeros_like(part["input_ids"]) for part in parts]
            whole[key] = torch.cat([part.get(key, zero) for part, zero in zip(parts, missing, strict=True)], dim=1)
        else:
            whole[key] = stack_media(key, [part[key] for part in parts if key in part])
    return whole


def stack_media(key: str, tensors: Sequence[Tensor]) -> Tensor:
    """Pictures of several samples along the first axis; a differing number of crops (LLaVA) is filled up with zeros.

    Raises:
        RowError: the pictures cannot be put into one tensor.
    """
    if len(tensors) == 1:
        return tensors[0]
    if key == "pixel_values" and tensors[0].ndim == 5:
        most = max(tensor.shape[1] for tensor in tensors)
        fill = [(0, 0) * (t.ndim - 2) + (0, most - t.shape[1]) for t in tensors]
        tensors = [torch.nn.functional.pad(t, sides) for t, sides in zip(tensors, fill, strict=True)]
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise RowError(
            f"{key} of several samples differ in shape: {', '.join(map(str, sorted(shapes)))}. Set "
            "train.per_device_batch_size to 1, or give all videos the same number of frames."
        )
    return torch.cat(list(tensors))


def check_points(conversation: Conversation) -> str:
    """What keeps the pictures of a row from having positions; empty where nothing does. No picture is opened."""
    try:
        for medium in conversation.media:
            _known_points(medium).check()
    except Vega3dError as error:
        return str(error).rstrip(".")
    return ""


def _known_points(medium: Medium) -> ScenePoints:
    if medium.points is None:
        raise RowError(
            f"the branch adds positions, and this {medium.kind} is no view of a `scene`: only a row that names one, "
            "with depth and poses, says where its pixels lie"
        )
    return medium.points


def _points_of(medium: Medium, places: Sequence[int], crop: tuple[int, int] | None) -> Tensor:
    try:
        return _known_points(medium)(places, crop)
    except SceneError as error:
        raise RowError(f"scene: {str(error).rstrip('.')}") from error


def _as_images(conversation: Conversation, settings: DataSettings) -> tuple[dict[int, Image.Image], Conversation]:
    """Each frame of a video an image of its own; their pixels by the new media's ids."""
    pictures: dict[int, Image.Image] = {}

    def frames(part: str | Medium) -> list[str | Medium]:
        if isinstance(part, str) or part.kind == "image":
            return [part]
        if isinstance(part.source, list):
            # Views may differ in size, as images may.
            return list(chosen(part, settings))
        video = load_video(part, settings)
        media = [Medium("image", part.source) for _ in video.frames]
        pictures.update({id(m): Image.fromarray(f) for m, f in zip(media, video.frames, strict=True)})
        return list(media)

    turns = tuple(
        Turn(turn.role, tuple(new for part in turn.parts for new in frames(part))) for turn in conversation.turns
    )
    return pictures, Conversation(turns)


def _message(turn: Turn) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in turn.parts]
    return {"role": turn.role, "content": content}


def _size_within(height: int, width: int, limit: int, unit: int | None) -> tuple[int, int]:
    """The size of a frame of at most ``limit`` pixels, of the same shape; whole tokens where the host has such."""
    if unit is None:
        scale = (limit / (height * width)) ** 0.5
        return max(1, int(height * scale)), max(1, int(width * scale))
    try:
        from qwen_vl_utils.vision_process import smart_resize
    except ImportError:
        raise RowError(
            f"a frame of {width}x{height} must be brought below {limit} pixels, which takes qwen-vl-utils: "
            "pip install 'vega3d-plugin[qwen]'"
        ) from None
    new_height, new_width = smart_resize(height, width, factor=unit, min_pixels=unit**2, max_pixels=limit)
    return int(new_height), int(new_width)


def _video_keys() -> Collection[str]:
    """Names of the options that this version of transformers knows for videos."""
    from transformers.processing_utils import VideosKwargs

    keys: dict[str, Any] = VideosKwargs.__annotations__
    return keys.keys()


def _metadata(video: Video) -> dict[str, Any]:
    if video.fps is None:
        count = len(video.indices)
        return {"total_num_frames": count, "fps": DEFAULT_FPS, "frames_indices": list(range(count))}
    return {"total_num_frames": video.total, "fps": video.fps, "frames_indices": list(video.indices)}


def _floats(inputs: Encoded) -> int:
    """How many numbers the host is given of pictures: all else is whole numbers."""
    tensors = (torch.as_tensor(value) for value in inputs.values() if not isinstance(value, list))
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


def _sizes(images: Sequence[Image.Image], videos: Sequence[Video]) -> str:
    """Of the pictures and videos of a piece, for messages."""
    shapes = [f"image {image.width}x{image.height}" for image in images]
    for video in videos:
        height, width = video.frames[0].shape[:2]
        shapes.append(f"video of {len(video.frames)} frames {width}x{height}")
    return ", ".join(shapes[:6]) + (", ..." if len(shapes) > 6 else "")
