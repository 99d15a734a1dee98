"""What conditions a transformer on the empty prompt, computed once by diffusers' own pipeline.

For families whose prompt is more than one vector (padding, masks, several text encoders): only the pipeline's own
``encode_prompt`` knows what belongs together. The pipeline is made of the text encoders and tokenizers alone.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.settings import PriorSettings
from ...storage import reading
from ...storage.weights import TRANSFORMERS, listing, read_json, weight_files
from ..frozen.components import download
from . import SAVED_NAME
from .one_vector import add_weights, cache_root, checkpoint_cache, load_safetensors, write_tensors
from .umt5 import brief

log = logging.getLogger("vega3d")

_CACHE_FORMAT = "1"
# Files above this size are told apart by their ends, not by all that is in them.
_LARGE = 1 << 20


def pipeline_prompt(
    folder: Path,
    settings: PriorSettings,
    is_local: bool,
    pipeline: str,
    encode: Callable[[Any], Mapping[str, Tensor]],
    patterns: list[str],
) -> dict[str, Tensor]:
    """Tensors that condition a transformer on the empty prompt, as diffusers' own pipeline computes them.

    Looked for in ``empty_prompt.safetensors`` beside the weights, then in the user's cache, and otherwise computed on
    the CPU from the checkpoint's own text encoders, which are then let go again. What was computed is cached, also
    under the identity of the transformer, so the text encoders may be deleted afterwards.

    Args:
        folder: of the checkpoint, in diffusers' layout.
        settings: of the prior.
        is_local: False when ``folder`` comes from the hub, so that more of it can be fetched.
        pipeline: name of the diffusers class, such as ``LTXPipeline``.
        encode: calls its ``encode_prompt`` and names what comes back; the pipeline has its text encoders and
            tokenizers, and None for everything else.
        patterns: files to fetch for that: ``["text_encoder/*", "tokenizer/*", "model_index.json"]``.

    Returns:
        By name, on the CPU: embeddings in float32, masks and token numbers as they are.

    Raises:
        PromptError: no prompt and no text encoder, or one that cannot be read; the message says what to fetch.
    """
    beside = folder / SAVED_NAME
    if beside.is_file():
        return _read(beside)
    who = f"\0{pipeline}\0{settings.name}"
    kept = checkpoint_cache(folder, who)
    cached = _encoder_cache(folder, who)
    # A text encoder that is there decides; what is remembered is for when it has gone.
    found = _from_cache(kept if cached is None else cached)
    if found is not None:
        return found
    if not is_local:
        folder = download(settings, patterns)
        cached = _encoder_cache(folder, who)
    found = _from_cache(cached)
    if found is None:
        log.info(
            "Prior %r: computing the empty prompt with the text encoder of %s. This happens once, and may take minutes "
            "and as much memory as the text encoder has weights.",
            settings.name,
            folder,
        )
        found = _computed(folder, settings, pipeline, encode)
        _to_cache(found, cached)
    _to_cache(found, kept)
    return found


def prompt_tensor(tensors: Mapping[str, Tensor], name: str, width: int, *, lengths: set[int] | None = None) -> Tensor:
    """An embedding ``[1, tokens, width]`` out of what :func:`pipeline_prompt` gave.

    Args:
        tensors: by name.
        name: of the embedding; without the batch axis it is fine too.
        width: numbers per token that the transformer expects.
        lengths: numbers of tokens that it can take; None for any.

    Raises:
        PromptError: none of that name, or of another shape; the message has both.
    """
    wanted = f"[1, {' or '.join(map(str, sorted(lengths))) if lengths else 'tokens'}, {width}]"
    if name not in tensors:
        raise PromptError(
            f"The empty prompt holds {', '.join(sorted(tensors)) or 'nothing'}, but no {name} {wanted}. "
            f"If there is a file {SAVED_NAME} beside the weights, it is of another prior: delete it."
        )
    tensor = tensors[name]
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    fits = tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[2] == width
    if not fits or (lengths is not None and tensor.shape[1] not in lengths) or not tensor.is_floating_point():
        raise PromptError(
            f"The empty prompt's {name} is {tensor.dtype} {list(tensor.shape)}, expected floating {wanted}: it was "
            "made with the text encoder of another checkpoint. Use this one's own."
        )
    return tensor


# Files


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_safetensors(path)
    except Exception as error:
        raise PromptError(
            f"{path} cannot be read as an empty prompt: {brief(error)}. Write it again with "
            "`vega3d prior export-prompt`, or delete it."
        ) from error
    return _checked(tensors, str(path))


def _checked(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    if not tensors:
        raise PromptError(f"{where} holds no tensors. Export the empty prompt again.")
    out = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise PromptError(f"{where}: {name} is a {type(tensor).__name__}, expected a tensor.")
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not bool(tensor.isfinite().all()):
                raise PromptError(f"{where}: {name} {list(tensor.shape)} holds NaN or infinity. Export it again.")
        # A copy of its own: a view would keep all that is behind it.
        out[name] = tensor.clone(memory_format=torch.contiguous_format)
    return out


def _encoder_cache(folder: Path, who: str) -> Path | None:
    """The place of what these text encoders give; None when they are not there."""
    root = cache_root()
    files = sorted(
        file for part in (*folder.glob("text_encoder*"), *folder.glob("tokenizer*")) for file in part.glob("*.*")
    )
    if root is None or not any(file.suffix == ".safetensors" for file in files):
        return None
    identity = hashlib.sha256(f"{_CACHE_FORMAT}{who}".encode())
    try:
        large = [file for file in files if file.stat().st_size > _LARGE or file.suffix == ".safetensors"]
        for file in files:
            if file not in large:
                identity.update(f"\0{file.relative_to(folder).as_posix()}\0".encode())
                identity.update(hashlib.sha256(file.read_bytes()).digest())
        add_weights(identity, folder, large)
    except OSError:  # loading the file says what is wrong with it
        return None
    return root / f"pipeline-{identity.hexdigest()[:32]}.safetensors"


def _from_cache(path: Path | None) -> dict[str, Tensor] | None:
    if path is None or not path.is_file():
        return None
    try:
        return _read(path)
    except PromptError as error:
        log.warning("The cached empty prompt is ignored: %s", error)
        return None


def _to_cache(tensors: dict[str, Tensor], path: Path | None) -> None:
    if path is None:
        return
    try:
        write_tensors(tensors, path)
    except OSError as error:
        log.warning(
            "The empty prompt cannot be cached (%s), so it will be computed again. Set VEGA3D_CACHE to a folder that "
            "can be written.",
            error,
        )


# The text encoders


def _computed(
    folder: Path, settings: PriorSettings, pipeline: str, encode: Callable[[Any], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    pipe = None
    try:
        with _no_gradients():
            pipe = _pipeline(folder, settings, pipeline)
            return _checked(encode(pipe), f"The empty prompt of {pipeline} with {folder}")
    finally:
        # Now, before the caller loads its own weights, rather than at some later time.
        del pipe
        gc.collect()


@contextmanager
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        yield


def _pipeline(folder: Path, settings: PriorSettings, name: str) -> Any:
    """The pipeline with nothing but what ``encode_prompt`` needs."""
    import diffusers

    # Built from its parts and not by `from_pretrained`, which asks for parts (scheduler, guardrails) nobody needs here.
    kind = getattr(diffusers, name)
    try:
        index = read_json(folder / "model_index.json")
    except CheckpointError as error:
        raise _nowhere(folder, settings, f"model_index.json cannot be read: {error}") from error
    parts: dict[str, Any] = {}
    for part, parameter in inspect.signature(kind.__init__).parameters.items():
        entry = index.get(part)
        if part == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if part.startswith("text_encoder"):
            parts[part] = _text_encoder(folder, settings, part, entry)
        elif part.startswith("tokenizer"):
            parts[part] = _tokenizer(folder, settings, part, entry)
        elif part in ("safety_checker", "feature_extractor"):
            parts[part] = _Unused()  # given None, some pipelines would fetch one, or refuse
        elif part in index and not isinstance(entry, list):
            parts[part] = entry
        elif parameter.default is inspect.Parameter.empty:
            parts[part] = None
    return kind(**parts)


class _Unused:
    """Stands where a pipeline insists on something that prompts do not need."""


def _class(folder: Path, settings: PriorSettings, part: str, entry: Any) -> str:
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "transformers" or not isinstance(entry[1], str):
        raise _nowhere(folder, settings, f"model_index.json gives {entry!r} for {part}, not a class of transformers")
    return entry[1]


def _text_encoder(folder: Path, settings: PriorSettings, part: str, entry: Any) -> Any:
    import transformers

    name = _class(folder, settings, part, entry)
    kind = getattr(transformers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
        raise PromptError(
            f"{folder / 'model_index.json'} names {name} for {part}, which this transformers "
            f"({transformers.__version__}) has not as a model."
        )
    home = folder / part
    if not home.is_dir():
        raise _nowhere(folder, settings, f"no {part}/. {listing(folder)}")
    try:
        config = read_json(home / "config.json")
        weight_files(home, TRANSFORMERS)
    except CheckpointError as error:
        raise _nowhere(folder, settings, str(error)) from error
    # In the weights' own dtype; float16 overflows in T5 and is slow on CPUs.
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    loader: Any = kind
    try:
        model, report = loader.from_pretrained(
            home,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise PromptError(
            f"The text encoder {home} cannot be loaded as {name}: {brief(error)}. It may be incomplete: download it "
            "again."
        ) from error
    # transformers would go on with random numbers, or without any.
    without = (name for name, parameter in model.named_parameters() if parameter.is_meta)
    missing = sorted({*report.get("missing_keys", ()), *without})
    if missing:
        raise PromptError(
            f"The text encoder {home} lacks {len(missing)} weights of {name}: {', '.join(missing[:3])}. "
            "Download it again."
        )
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path, settings: PriorSettings, part: str, entry: Any) -> Any:
    import transformers

    name = _class(folder, settings, part, entry)
    if name in ("T5Tokenizer", "T5TokenizerFast"):
        return EmptyTextTokenizer(folder, part)
    home = folder / part
    if not any((home / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise _nowhere(folder, settings, f"no vocabulary in {part}/. {listing(home)}")
    kind = getattr(transformers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
        raise PromptError(
            f"{folder / 'model_index.json'} names {name} for {part}, which this transformers "
            f"({transformers.__version__}) has not."
        )
    loader: Any = kind
    try:
        return loader.from_pretrained(home, local_files_only=True)
    except Exception as error:
        raise PromptError(
            f"The tokenizer {home} cannot be loaded as {name}: {brief(error)}. Download it again."
        ) from error


class EmptyTextTokenizer:
    """What T5's tokenizer makes of an empty text: the end of sequence, then padding.

    T5's published tokenizers are SentencePiece files, which need a package more (``sentencepiece``) to say just this.

    Args:
        folder: of the checkpoint.
        part: name of the tokenizer in it; its text encoder's ``config.json`` has the two tokens' numbers.
    """

    def __init__(self, folder: Path, part: str = "tokenizer") -> None:
        config = read_json(folder / part.replace("tokenizer", "text_encoder") / "config.json")
        self.end, self.padding = (config.integer(key, default, low=0) for key, default in _T5_TOKENS.items())
        file = folder / part / "tokenizer_config.json"
        self.model_max_length = _limit(file) if file.is_file() else 512

    def __call__(
        self,
        text: str | list[str],
        *,
        padding: str | bool = False,
        max_length: int | None = None,
        **_: Any,
    ) -> Any:
        """Token numbers and mask ``[texts, length]``, as tensors; refuses any text that is not empty."""
        from transformers import BatchEncoding

        texts = [text] if isinstance(text, str) else list(text)
        if any(texts):
            raise PromptError(f"Only the empty prompt can be encoded without T5's own tokenizer, got {texts!r}.")
        length = (max_length or self.model_max_length) if padding == "max_length" else 1
        if length > _LONGEST:
            raise PromptError(f"The empty prompt would be filled up to {length:,} tokens; no text encoder takes these.")
        ids = torch.full((len(texts), length), self.padding, dtype=torch.long)
        ids[:, 0] = self.end
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def batch_decode(self, ids: Tensor, **_: Any) -> list[str]:
        """Empty texts, as many as there are rows."""
        return [""] * len(ids)


def _limit(file: Path) -> int:
    """Tokens that a tokenizer fills a text up to; a number of thirty digits stands for no limit."""
    return reading.read_json(file, CheckpointError).integer("model_max_length", 512, high=10**31)


_LONGEST = 1 << 16
_T5_TOKENS = {"eos_token_id": 1, "pad_token_id": 0}


def _nowhere(folder: Path, settings: PriorSettings, problem: str) -> PromptError:
    return PromptError(
        f"No empty prompt for prior {settings.name!r} in {folder}: there is no {SAVED_NAME}, nothing in the cache, and "
        f"the text encoder cannot be used: {problem.rstrip('.')}. Either download the checkpoint's model_index.json, "
        "text_encoder*/ and tokenizer*/, which are needed once, or export the prompt where they are: "
        f"`vega3d prior export-prompt {settings.name} --pretrained DIR`, and put the file beside the weights."
    )
