"""A few rows that are looked at while a model trains: their pictures, the answers, and the prior's share of each token.

What is found is written into the run's folder at once, so that the report can be made from it whatever happens later.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..branch.blocks import block
from ..branch.handle import get_handle, is_patched
from ..branch.switches import disabled
from ..contracts.clips import Clip
from ..contracts.errors import RowError, Vega3dWarning
from ..contracts.shares import Shares
from ..storage.writing import write_atomically, write_json
from ..training.answers import generate, split_answer
from .data import ConversationData
from .rows.conversation import Conversation, Medium
from .rows.media import load_image, load_video
from .run_log import FILES

log = logging.getLogger("vega3d")

ROWS = "rows.json"
STEP = "step-{:06d}.json"
#: Frames of a row that are shown, and the largest side of their pictures in pixels.
FRAMES, SIDE = 6, 320
#: Of an answer.
NEW_TOKENS = 32
Recorded = list[tuple[Clip, Shares]]


class Samples:
    """Asks the rows of the report before the first step, and with each checkpoint.

    Args:
        output: folder of the run.
        data: the rows to choose from.
        count: how many.
        held_out: whether they are rows that are not trained on.
        processor: of the host.
        autocast: as the trainer computes.
    """

    def __init__(
        self,
        output: Path,
        data: ConversationData,
        count: int,
        *,
        held_out: bool,
        processor: Any,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.folder, self.data, self.held_out = output / FILES, data, held_out
        self.count, self.processor, self.autocast = count, processor, autocast
        self.rows: list[tuple[str, Conversation]] | None = None
        self.pictures: list[list[tuple[int, int]]] = []
        self.failed = False

    def before(self, model: nn.Module) -> None:
        """Write the rows, their pictures and the answers of the host alone, before anything has trained."""
        with self._harmless("before the first step"), _still(model), self.autocast():
            described = []
            for number, (name, conversation) in enumerate(self._rows()):
                with disabled(model) if is_patched(model) else nullcontext():
                    said = self._answer(model, conversation)
                recorded: Recorded = []
                if is_patched(model):
                    with recording(model, recorded):
                        self._answer(model, conversation, tokens=1)
                frames = self._frames(conversation, recorded)
                described.append(
                    {
                        "name": name,
                        "question": _asked(conversation),
                        "expected": conversation.turns[-1].text.strip(),
                        "base": said,
                        "frames": self._written(number, frames),
                        "shares": self._shares(number, recorded),
                    }
                )
            write_json(self.folder / ROWS, {"held_out": self.held_out, "rows": described})

    def at(self, model: nn.Module, step: int) -> None:
        """Write the answers with the branch and without it, and the shares, after a step."""
        if self.failed:
            return
        with self._harmless(f"at step {step}"), _still(model), self.autocast():
            found = []
            for number, (_, conversation) in enumerate(self._rows()):
                recorded: Recorded = []
                row: dict[str, Any] = {}
                if is_patched(model):
                    with recording(model, recorded):
                        row["patched"] = self._answer(model, conversation)
                    with disabled(model):
                        row["off"] = self._answer(model, conversation)
                    row["shares"] = self._shares(number, recorded)
                else:
                    row["trained"] = self._answer(model, conversation)
                found.append(row)
            write_json(self.folder / STEP.format(step), {"step": step, "rows": found})

    @contextmanager
    def _harmless(self, when: str) -> Iterator[None]:
        """A report is no reason to end a run: what goes wrong is told once, and training goes on."""
        try:
            yield
        except Exception as error:
            self.failed = True
            warnings.warn(
                f"The rows of the report could not be asked {when} ({type(error).__name__}: {str(error)[:300]}). "
                "Training continues without them; train.report_rows=0 leaves them out.",
                Vega3dWarning,
                stacklevel=3,
            )

    def _rows(self) -> list[tuple[str, Conversation]]:
        """The first question of rows spread over the data; one that cannot be used makes way for the next."""
        if self.rows is None:
            self.rows = []
            total = len(self.data)
            for place in evenly(range(total), self.count):
                number = place if self.data.usable is None else self.data.usable[place]
                try:
                    self.rows.append((self.data.rows.name(number), self._first_answer(number)))
                except RowError as error:
                    log.info("Row %s is not shown in the report: %s", self.data.rows.name(number), error)
        return self.rows

    def _first_answer(self, number: int) -> Conversation:
        whole = self.data.conversation(number)
        end = next(i for i, turn in enumerate(whole.turns) if turn.role == "assistant")
        first = Conversation(whole.turns[: end + 1])
        self.data.encoder(first)
        return first

    def _answer(self, model: nn.Module, conversation: Conversation, tokens: int = NEW_TOKENS) -> str:
        prompt, _ = split_answer(self.data.encoder(conversation))
        return generate(model, self.processor, prompt, max_new_tokens=tokens)[0]

    def _frames(self, conversation: Conversation, recorded: Recorded) -> list[tuple[Image.Image, int, int]]:
        """Pictures, each with the clip and the row of tokens that it belongs to; -1 where there is no branch."""
        places = [(c, t) for c, (clip, _) in enumerate(recorded) for t in range(clip.grid.t)]
        if places:
            return [(frame_of(recorded[c][0], t), c, t) for c, t in evenly(places, FRAMES)]
        images: list[Image.Image] = []
        for medium in conversation.media:
            images += self._images(medium)
        return [(image, -1, -1) for image in evenly(images, FRAMES)]

    def _images(self, medium: Medium) -> list[Image.Image]:
        if medium.kind == "image":
            return [load_image(medium)]
        return [Image.fromarray(frame) for frame in load_video(medium, self.data.settings).frames]

    def _written(self, number: int, frames: Sequence[tuple[Image.Image, int, int]]) -> list[str]:
        names = []
        for place, (image, _, _) in enumerate(frames):
            image = image.convert("RGB")
            image.thumbnail((SIDE, SIDE))
            name = f"row{number}_{place}.jpg"
            write_atomically(self.folder / name, partial(image.save, format="JPEG", quality=88), durable=False)
            names.append(name)
        self.pictures.append([(clip, row) for _, clip, row in frames])
        return names

    def _shares(self, number: int, recorded: Recorded) -> dict[str, Any] | None:
        """Means over all tokens of the row, and the maps of the frames that are shown."""
        if not recorded:
            return None
        shares = [share for _, share in recorded]
        places = self.pictures[number] if number < len(self.pictures) else _places(recorded)
        known = [share.generative for share in shares if share.generative is not None]
        return {
            "generative": float(torch.cat([g.flatten() for g in known]).mean()) if known else None,
            "change": float(torch.cat([share.change.flatten() for share in shares]).mean()),
            "scale": shares[0].scale,
            "measure": shares[0].measure,
            "reason": shares[0].reason,
            "maps": [_map(recorded[clip][1].generative, row) for clip, row in places] if known else [],
        }


def look_at(samples: Samples, *, fresh: bool, after: Callable[[], object]) -> Any:
    """A callback of Trainer, for the first process.

    Args:
        samples: what is asked.
        fresh: the run begins, so the model is still the host alone.
        after: called once a checkpoint has been looked at.
    """
    from transformers import TrainerCallback

    class LookAt(TrainerCallback):  # type: ignore[misc]
        """See :func:`look_at`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if fresh and state.is_world_process_zero:
                samples.before(kwargs["model"])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                samples.at(kwargs["model"], state.global_step)
                after()

    return LookAt()


@contextmanager
def recording(model: nn.Module, found: Recorded) -> Iterator[None]:
    """Within it, clips and shares of this thread's calls are appended to ``found``."""

    def record(clips: Sequence[Clip], shares: Sequence[Shares]) -> None:
        found.extend(zip(clips, shares, strict=True))

    with block(get_handle(model).branch.key, "shares", record):
        yield


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """The model in evaluation, then as it was, module by module: some parts of it may be in evaluation all along."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def frame_of(clip: Clip, row: int) -> Image.Image:
    """The first frame that a row of tokens covers."""
    return Image.fromarray(clip_pixels(clip)[clip.frames.shape[0] * row // clip.grid.t])


def clip_pixels(clip: Clip) -> NDArray[np.uint8]:
    """The frames of a clip as the host saw them: uint8 ``[T, H, W, 3]``."""
    pixels: NDArray[np.uint8] = (255 * clip.frames.float().clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _places(recorded: Recorded) -> list[tuple[int, int]]:
    return evenly([(c, t) for c, (clip, _) in enumerate(recorded) for t in range(clip.grid.t)], FRAMES)


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread, both ends included."""
    count = min(most, len(values))
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def _map(generative: Tensor | None, row: int) -> list[list[float]] | None:
    if generative is None:
        return None
    return [[round(float(value), 6) for value in line] for line in generative[row].cpu()]


def _asked(conversation: Conversation) -> str:
    turns: Mapping[bool, Any] = {turn.role == "user": turn for turn in conversation.turns}
    return turns[True].text.strip() if True in turns else ""
