"""The embedding of the empty prompt: what a Wan transformer is conditioned on when no text is given.

The tokenizer of UMT5 makes one token of an empty text, so this is one vector. It is looked for in a file beside the
weights, then in the user's cache, and otherwise computed once from the checkpoint's own text encoder, which is then let
go again.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vega3d_plugin.contracts.documents import read_bytes
from vega3d_plugin.contracts.errors import PromptError
from vega3d_plugin.priors.prompts import SAVED_NAME
from vega3d_plugin.priors.prompts.umt5 import TextEncoderFiles, brief, check_width, find_text_encoder, load_umt5
from vega3d_plugin.storage.caches import cache_root as shared_caches
from vega3d_plugin.storage.pickles import load_pickle
from vega3d_plugin.storage.writing import sweep, write_atomically

BESIDE = (SAVED_NAME, "wan_prompt_embedding.pt", "empty_prompt.pt")
"""The files that are read from beside the weights, the first one found wins."""

#: Bytes of a file of prompts; the longest of any family have 30 MB.
MAX_PROMPT = 1 << 28
MAX_TOKENS = 512
"""The text length of every Wan transformer."""

_TENSOR = "context"
_PICKLED_NAMES = ("context", "embedding")
_EDGE = 64 * 1024
_CACHE_FORMAT = "1"

_log = logging.getLogger("vega3d")


def empty_prompt(folder: Path, *, text_dim: int, progress: bool = True) -> Tensor:
    """Return the empty prompt's embedding for the checkpoint in ``folder``: ``[tokens, text_dim]``, float32, CPU.

    There is no padding in it; the released text length of 512 is the caller's matter. Sources, in this order: a file
    beside the weights (:data:`BESIDE`), the user's cache, the checkpoint's own text encoder. What was computed is kept
    in the cache, also under the identity of the transformer it was computed for, so the text encoder may be deleted
    afterwards.
    """
    folder = Path(folder)
    for name in BESIDE:
        path = folder / name
        if path.is_file():
            return _read_beside(path, text_dim)

    files, problems = find_text_encoder(folder)
    kept = checkpoint_cache(folder)
    if files is None:
        context = _from_cache(kept)
        if context is None:
            raise _nowhere(folder, problems)
        _log.info("%s has no text encoder any more; its empty prompt is read from %s", folder, kept)
        check_width(context.shape[1], text_dim, f"once in {folder}")
        return context

    cached = _encoder_cache(files)
    context = _from_cache(cached)
    if context is not None:
        check_width(context.shape[1], text_dim, files.name)
        known = _from_cache(kept)
        if known is None or not torch.equal(known, context):
            _to_cache(context, kept)
        return context

    _log.info("Computing the empty prompt with %s; this happens once per text encoder", files.name)
    context = _compute(files, text_dim, progress)
    problem = _to_cache(context, cached)
    if problem is None:
        _to_cache(context, kept)
        _log.info("The empty prompt is cached in %s", cached)
    else:
        _log.warning(
            "The empty prompt cannot be cached (%s), so it will be computed again next time. "
            "Set VEGA3D_CACHE to a folder that can be written, or keep it with save_empty_prompt(context, %r)",
            problem,
            str(folder),
        )
    return context


def save_empty_prompt(context: Tensor, folder: Path) -> Path:
    """Write ``context`` as ``empty_prompt.safetensors`` into ``folder``, where :func:`empty_prompt` finds it first."""
    path = Path(folder) / SAVED_NAME
    checked = _checked(context, "The tensor to be saved", None)
    try:
        write_tensors({_TENSOR: checked}, path)
    except OSError as error:
        raise PromptError(f"{path} cannot be written: {error}. Give a folder that can be written.") from error
    return path


# Files beside the weights


def _read_beside(path: Path, text_dim: int) -> Tensor:
    try:
        found: Any = load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path, PromptError)
    except Exception as error:
        raise PromptError(
            f"{path} cannot be read as an empty prompt: {brief(error)}. Only tensors are ever loaded from it. "
            "Write it again with `vega3d prior export-prompt`, or delete it."
        ) from error
    names = (_TENSOR,) if path.suffix == ".safetensors" else _PICKLED_NAMES
    if isinstance(found, Mapping):
        tensor = next((found[name] for name in names if name in found), None)
        if tensor is None:
            raise PromptError(
                f"{path} holds {sorted(map(str, found))[:8]}, but no tensor named {' or '.join(map(repr, names))}. "
                "Name it so, or delete the file."
            )
    else:
        tensor = found
    return _checked(tensor, str(path), text_dim)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a small file, in memory of their own.

    Raises:
        FileNotFoundError: there is none.
        PromptError, DocumentError, SafetensorError: it is damaged, or too large for a prompt.
    """
    from safetensors.torch import load

    # From memory, not mapped: the file may be replaced while the tensor is in use.
    return load(read_bytes(path, MAX_PROMPT))


def _checked(context: object, source: str, text_dim: int | None) -> Tensor:
    """Return ``context`` as float32 ``[tokens, text_dim]`` without trailing zero rows, or say what is wrong with it."""
    expected = f"[tokens, {text_dim or 'text_dim'}] with 1 to {MAX_TOKENS} tokens"
    advice = "Export the empty prompt of this checkpoint's own text encoder."
    if not isinstance(context, Tensor):
        raise PromptError(f"{source} holds a {type(context).__name__}, expected a tensor {expected}. {advice}")
    shape = list(context.shape)
    rows = context.detach()
    if rows.ndim == 3 and shape[0] == 1:
        rows = rows[0]
    fits = rows.ndim == 2 and 1 <= rows.shape[0] <= MAX_TOKENS and rows.shape[1] == (text_dim or rows.shape[1] or None)
    if not fits:
        raise PromptError(f"{source} has shape {shape}, expected {expected}. {advice}")
    if not rows.is_floating_point():
        raise PromptError(f"{source} has dtype {rows.dtype} and shape {shape}, expected floating {expected}. {advice}")
    rows = rows.to(device="cpu", dtype=torch.float32)
    if not bool(rows.isfinite().all()):
        raise PromptError(f"{source} has shape {shape} but holds NaN or infinity, expected finite {expected}. {advice}")
    filled = rows.ne(0).any(dim=1).nonzero()
    if not len(filled):
        raise PromptError(f"{source} has shape {shape} but is zero throughout, expected {expected}. {advice}")
    # A copy: contiguous, and without the memory of a padded export behind it.
    return rows[: int(filled[-1]) + 1].clone(memory_format=torch.contiguous_format)


# The cache


def cache_root() -> Path | None:
    """Where computed prompts are kept; None for a user without a home folder."""
    root = shared_caches()
    return None if root is None else root / "empty_prompt"


def _encoder_cache(files: TextEncoderFiles) -> Path | None:
    root = cache_root()
    if root is None:
        return None
    identity = hashlib.sha256(_CACHE_FORMAT.encode())
    try:
        for path in files.settings:
            identity.update(f"\0{path.relative_to(files.folder).as_posix()}\0".encode())
            identity.update(hashlib.sha256(path.read_bytes()).digest())
        add_weights(identity, files.folder, files.weights)
    except OSError:  # loading the file says what is wrong with it
        return None
    return root / f"encoder-{identity.hexdigest()[:32]}.safetensors"


def checkpoint_cache(folder: Path, kind: str = "") -> Path | None:
    """The place that remembers what was computed for this very transformer in this very folder.

    ``kind`` tells prompts of other pipelines apart.
    """
    root = cache_root()
    places = ("transformer/*.safetensors", "unet/*.safetensors", "diffusion_pytorch_model*.safetensors")
    weights = [file for place in places for file in folder.glob(place)]
    if root is None or not weights:
        return None
    identity = hashlib.sha256(f"{_CACHE_FORMAT}\0{folder.resolve()}{kind}".encode())
    try:
        add_weights(identity, folder, weights)
    except OSError:  # the transformer's own loader says what is wrong with it
        return None
    return root / f"checkpoint-{identity.hexdigest()[:32]}.safetensors"


def add_weights(identity: Any, folder: Path, weights: Iterable[Path]) -> None:
    """Add names, sizes and both ends of large files: cheap, and another training's last weights differ."""
    for path in sorted(weights):
        size = path.stat().st_size
        identity.update(f"\0{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as opened:
            identity.update(hashlib.sha256(opened.read(_EDGE)).digest())
            opened.seek(max(0, size - _EDGE))
            identity.update(hashlib.sha256(opened.read(_EDGE)).digest())


def _from_cache(path: Path | None) -> Tensor | None:
    if path is None:
        return None
    try:
        return _checked(load_safetensors(path)[_TENSOR], str(path), None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        _log.warning("The cached empty prompt %s cannot be used and is ignored: %s", path, error)
        return None


def _to_cache(context: Tensor, path: Path | None) -> str | None:
    """Write a cache file; return what went wrong, if anything did."""
    if path is None:
        return "there is no cache folder"
    try:
        write_tensors({_TENSOR: context}, path)
    except OSError as error:
        return str(error)
    return None


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file that nobody ever finds incomplete, and clear away what others left beside it when they were killed.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    data = save(tensors)
    write_atomically(path, lambda place: place.write_bytes(data))
    sweep(path.parent)


# The text encoder


def _compute(files: TextEncoderFiles, text_dim: int, progress: bool) -> Tensor:
    from tqdm import tqdm

    model = load_umt5(files, text_dim=text_dim)
    blocks = model.encoder.block
    try:
        with tqdm(total=len(blocks), desc="empty prompt", unit="block", disable=not progress) as bar:

            def count(*_: object) -> None:
                bar.update()

            for block in blocks:
                block.register_forward_hook(count)
            ids = torch.zeros(1, 1, dtype=torch.long, device="cpu")
            with torch.no_grad():
                hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return _checked(hidden, f"The output of the text encoder {files.name}", text_dim)
    finally:
        # Now, before the caller loads its own weights, rather than at some later time.
        del model, blocks
        gc.collect()


def _nowhere(folder: Path, problems: list[str]) -> PromptError:
    if not folder.is_dir():
        return PromptError(f"No empty prompt: {folder} is not a folder. Give the folder of a Wan checkpoint.")
    return PromptError(
        f"No empty prompt for the checkpoint in {folder}. Looked for {', '.join(BESIDE)} and for a text encoder "
        f"to compute it with; found {'; '.join(problems)}. Either download the checkpoint's text_encoder/ (in the "
        f"original layout models_t5_umt5-xxl-enc-bf16.pth), which is needed once, or put {SAVED_NAME} there: "
        "`vega3d prior export-prompt` writes it where the text encoder is, and an export from the released code, "
        "wan_prompt_embedding.pt, is read as it is."
    )
