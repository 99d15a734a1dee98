"""The UMT5 text encoder of a Wan checkpoint, read from either layout and only ever asked about one token.

Both layouts end in the same :class:`transformers.UMT5EncoderModel`. Its weights are the files' own, memory-mapped and
put in place without a copy, and of the token table only the row that is asked for is kept. A weight that is missing,
superfluous or of another shape is an error: nothing is ever initialised at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vega3d_plugin.contracts.errors import PromptError
from vega3d_plugin.storage.pickles import load_pickle
from vega3d_plugin.storage.reading import named_files, open_safetensors, read_json

END_OF_SEQUENCE = 1
"""The id of UMT5's end-of-sequence token: all that its tokenizer makes of an empty text."""

_TABLE = "token_embedding.weight"
_TABLE_NAMES = ("shared.weight", "encoder.embed_tokens.weight")

# Wan's own T5 on the left, transformers' on the right; the part of a name below "blocks.N." / "encoder.block.N.".
_BLOCK_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TextEncoderFiles:
    """Where a checkpoint folder keeps its text encoder."""

    folder: Path
    weights: tuple[Path, ...]
    settings: tuple[Path, ...] = ()
    """``config.json`` first, in diffusers' layout; empty in the original one."""

    @property
    def name(self) -> str:
        """The part of the folder it lies in, for messages."""
        first = self.weights[0]
        return str(first if not self.settings else first.parent)


def find_text_encoder(folder: Path) -> tuple[TextEncoderFiles | None, list[str]]:
    """Return the files of the text encoder in ``folder``, or None, and what stands in the way of using each layout."""
    problems: list[str] = []
    home = folder / "text_encoder"
    if home.is_dir():
        weights, settings, problem = _diffusers_files(home)
        if problem is None:
            return TextEncoderFiles(folder, weights, settings), []
        problems.append(problem)
    else:
        problems.append("no folder text_encoder/")
    originals = sorted(
        folder.glob("models_t5*.pth"), key=lambda p: (p.name != "models_t5_umt5-xxl-enc-bf16.pth", p.name)
    )
    if originals:
        return TextEncoderFiles(folder, (originals[0],)), []
    problems.append("no file models_t5*.pth")
    return None, problems


def load_umt5(files: TextEncoderFiles, *, text_dim: int) -> Any:
    """Load the encoder with a table of one token: the end of sequence, which has id 0 in it.

    The model computes in the weights' own dtype, in float32 when that is float16 or a mixture.
    """
    if files.settings:
        config, state = _read_diffusers(files, text_dim)
    else:
        config, state = _read_original(files.weights[0], text_dim)
    return _build(config, state, files.name)


def check_width(width: int, text_dim: int, where: str) -> None:
    """Refuse a text encoder that does not belong to the transformer."""
    if width != text_dim:
        raise PromptError(
            f"The text encoder {where} gives {width} numbers per token, the transformer expects {text_dim}. "
            "It belongs to another checkpoint: download the text encoder this one was published with."
        )


def names_from_wan(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Map the names of Wan's own T5 encoder to transformers' names; return the unknown ones apart."""
    renamed: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        match = _BLOCK.fullmatch(name)
        if name == _TABLE:
            renamed[name] = _TABLE_NAMES[0]
        elif name == "norm.weight":
            renamed[name] = "encoder.final_layer_norm.weight"
        elif match and match[2] in _BLOCK_NAMES:
            renamed[name] = f"encoder.block.{match[1]}.{_BLOCK_NAMES[match[2]]}"
        else:
            unknown.append(name)
    return renamed, unknown


def _diffusers_files(home: Path) -> tuple[tuple[Path, ...], tuple[Path, ...], str | None]:
    config, index = home / "config.json", home / "model.safetensors.index.json"
    if not config.is_file():
        return (), (), "text_encoder/ without config.json"
    if not index.is_file():
        single = home / "model.safetensors"
        if not single.is_file():
            return (), (), "text_encoder/ without model.safetensors or model.safetensors.index.json"
        return (single,), (config,), None
    try:
        weights = tuple(named_files(index, PromptError))
    except PromptError as error:
        return (), (), f"text_encoder/{index.name}, which cannot be read ({error})"
    absent = [path.name for path in weights if not path.is_file()]
    if absent or not weights:
        return (), (), f"text_encoder/ without {len(absent)} of {len(weights)} weight files ({_some(absent)})"
    return weights, (config, index), None


def _read_diffusers(files: TextEncoderFiles, text_dim: int) -> tuple[Any, dict[str, Tensor]]:
    from transformers import UMT5Config

    path = files.settings[0]
    try:
        raw = read_json(path, PromptError).check_sizes()
        kind = raw.get("model_type")
        config = UMT5Config.from_dict(raw) if kind == "umt5" else None
    except Exception as error:
        raise PromptError(
            f"{path} is not a readable model configuration: {brief(error)}. Download the text encoder again."
        ) from error
    if config is None:
        raise PromptError(
            f"{path} describes a text encoder of type {kind!r}; a Wan checkpoint has one of type 'umt5'. "
            "Download the text encoder this checkpoint was published with."
        )
    check_width(config.d_model, text_dim, files.name)
    token = config.eos_token_id
    if isinstance(token, (list, tuple)):
        token = token[0] if token else None
    config.eos_token_id = END_OF_SEQUENCE if token is None else token

    state: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    for weights in files.weights:
        try:
            with open_safetensors(weights, PromptError) as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict: it has no iterator
                    if name in _TABLE_NAMES:
                        tables[name] = opened.get_tensor(name)
                    elif name.startswith("encoder."):
                        state[name] = opened.get_tensor(name)
        except PromptError as error:
            raise _unreadable(weights, error) from error
    return _keep_one_row(config, state, list(tables.values()), files.name)


def _read_original(path: Path, text_dim: int) -> tuple[Any, dict[str, Tensor]]:
    from transformers import UMT5Config

    try:
        found = load_pickle(path, PromptError)
    except PromptError as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise PromptError(
            f"{path} holds a {type(found).__name__}, not the named tensors of a T5 encoder. Download the file again."
        )
    renamed, unknown = names_from_wan(found)
    if unknown:
        raise PromptError(
            f"{path} holds {len(unknown)} weights that Wan's T5 encoder does not have ({_some(unknown)}). "
            "Download models_t5_umt5-xxl-enc-bf16.pth of the checkpoint."
        )
    needed = ("attn.q.weight", "ffn.fc1.weight", "pos_embedding.embedding.weight")
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    absent = [name for name in (_TABLE, *(f"blocks.0.{name}" for name in needed)) if len(shapes.get(name, ())) != 2]
    if absent:
        raise PromptError(f"{path} has no matrix named {_some(absent)}. Download the file again.")
    vocabulary, width = shapes[_TABLE]
    check_width(width, text_dim, str(path))
    inner, hidden = shapes["blocks.0.attn.q.weight"][0], shapes["blocks.0.ffn.fc1.weight"][0]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    if heads == 0 or inner % heads:
        raise PromptError(
            f"{path}: an attention width of {inner} cannot be split into {heads} heads. Download the file again."
        )
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_layers=1 + max(int(match[1]) for match in map(_BLOCK.fullmatch, found) if match),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        eos_token_id=END_OF_SEQUENCE,
    )
    state = {renamed[name]: value for name, value in found.items() if name != _TABLE}
    return _keep_one_row(config, state, [found[_TABLE]], str(path))


def _keep_one_row(
    config: Any, state: dict[str, Tensor], tables: list[Tensor], where: str
) -> tuple[Any, dict[str, Tensor]]:
    token = config.eos_token_id
    if not tables:
        raise PromptError(f"The text encoder {where} has no token table ({_TABLE_NAMES[0]}). Download it again.")
    for table in tables:
        if table.ndim != 2 or not 0 <= token < len(table):
            raise PromptError(
                f"The text encoder {where} has a token table of shape {list(table.shape)}, without a row for the "
                f"end-of-sequence token {token}. Download it again."
            )
    row = tables[0][token : token + 1].clone()
    if not all(torch.equal(row, table[token : token + 1]) for table in tables):
        raise PromptError(
            f"The text encoder {where} has two token tables ({' and '.join(_TABLE_NAMES)}) that differ, while UMT5 has "
            "one. It was not saved as it should be: download the checkpoint's own text encoder."
        )
    config.vocab_size, config.eos_token_id, config.pad_token_id = 1, 0, 0
    return config, {**state, **dict.fromkeys(_TABLE_NAMES, row)}


def _build(config: Any, state: dict[str, Tensor], where: str) -> Any:
    from transformers import UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} has shape {list(value.shape)} instead of {expected[name]}"
        for name, value in state.items()
        if name in expected and list(value.shape) != expected[name]
    ]
    problems += [f"{name} is {value.dtype}" for name, value in state.items() if not value.is_floating_point()]
    if problems:
        raise PromptError(
            f"The weights of the text encoder {where} do not make a UMT5 encoder: {_some(problems, '; ')}. "
            "Download the text encoder again, complete and not quantised."
        )
    if {value.dtype for value in state.values()} not in ({torch.bfloat16}, {torch.float32}, {torch.float64}):
        state = {name: value.float() for name, value in state.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _unreadable(path: Path, error: Exception) -> PromptError:
    return PromptError(
        f"{path} cannot be read as weights ({path.stat().st_size} bytes): {brief(error)}. "
        "It may be incomplete, or hold more than tensors, which is never loaded. Download it again."
    )


def brief(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _some(items: list[str], separator: str = ", ") -> str:
    rest = f"{separator}and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + rest
