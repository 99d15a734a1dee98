"""Load a host and its processor from a folder or a hub id, in any supported transformers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..contracts.errors import HostError
from ..contracts.seams import seen_with
from ..contracts.tables import HOSTS
from ..storage.folders import local_folder
from ..storage.record import CONFIG_FILE
from .extras import installed_first, needed_first
from .finding import find_host

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class HostSource:
    """A checkpoint whose config has been read.

    Attributes:
        source: folder or hub id.
        model_class: the class that the config names, of transformers or of the checkpoint's own code.
        config: the host's config.
    """

    source: str
    model_class: Any
    config: Any


@dataclass(frozen=True)
class LoadedHost:
    """A host with its weights.

    Attributes:
        model: in eval mode.
        missing: names of weights that the checkpoint lacks; they hold random numbers.
        surplus: names in the checkpoint that the model has no place for.
    """

    model: nn.Module
    missing: list[str]
    surplus: list[str]


def read_source(source: str | Path, *, trust_remote_code: bool = False) -> HostSource:
    """Find out which model class a folder or a hub id holds.

    Args:
        source: folder or hub id.
        trust_remote_code: the user's word that code which comes with the checkpoint may run.

    Raises:
        HostError: no such folder or hub id, no model in it, code that may not run, or a class that neither the
            installed transformers nor that code has.
    """
    import transformers

    checked = _folder_or_id(source)
    try:
        config = transformers.AutoConfig.from_pretrained(checked, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise HostError(
                f"{source} comes with its own code, which runs only if you allow it. Read it, then pass "
                "--trust-remote-code (in Python trust_remote_code=True)."
            ) from error
        names = _class_names(checked)
        problem = _not_a_model(checked) or ("" if trust_remote_code else _elsewhere(source, names))
        raise HostError(problem or f"{source}: no model can be read from it. {_brief(error)}{_seen(names)}") from error
    names = getattr(config, "architectures", None) or []
    if not names:
        raise HostError(f"{source}: its config.json names no model class (architectures), so it cannot be loaded.")
    model_class = getattr(transformers, names[0], None)
    if model_class is None and trust_remote_code:
        model_class = _own_class(checked, names[0], getattr(config, "auto_map", None) or {})
    if model_class is None:
        raise HostError(
            _elsewhere(source, names)
            or f"{source}: transformers {transformers.__version__} has no class {names[0]!r}. Install a version that "
            "has it; if it comes with code of its own, load it yourself and pass it to vega3d_plugin.doctor.examine."
        )
    return HostSource(checked, model_class, config)


def check_supported(found: HostSource, host: str | None = None) -> None:
    """Find out whether an adapter matches, without reading weights: on the meta device a model takes no memory.

    Args:
        found: what :func:`read_source` gave.
        host: name of the adapter, which then need not match.

    Raises:
        HostError: none does.
    """
    try:
        with torch.device("meta"):
            model = found.model_class(found.config)
    except Exception:
        # Not every class can be built there; then the loaded model tells.
        return
    find_host(model, host)


def load_host(
    found: HostSource, *, device: str | torch.device | None = None, dtype: str = "auto", **options: Any
) -> LoadedHost:
    """Load the model, by default in the dtype it was saved in.

    Args:
        found: what :func:`read_source` gave.
        device: default: CUDA when there is any.
        dtype: ``auto``, ``bfloat16``, ...
        options: further ones of ``from_pretrained``.

    Raises:
        HostError: the weights cannot be loaded.
    """
    # `torch_dtype` became `dtype` in transformers 4.56.
    options["dtype" if hasattr(found.config, "dtype") else "torch_dtype"] = dtype
    try:
        model, info = found.model_class.from_pretrained(found.source, output_loading_info=True, **options)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:
        name = found.model_class.__name__
        raise HostError(f"{found.source}: {name} could not be loaded: {_brief(error)}{_seen([name])}") from error
    return LoadedHost(model.eval(), sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))


def load_processor(source: str | Path, **options: Any) -> Any:
    """The processor of a checkpoint.

    Args:
        source: folder or hub id.
        options: of ``AutoProcessor.from_pretrained``.

    Raises:
        HostError: there is none, or it takes no images.
    """
    import transformers

    checked = _folder_or_id(source)
    folder = Path(checked)
    if folder.is_dir() and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise HostError(f"{source} has no processor: neither {' nor '.join(PROCESSOR_FILES)}.")
    try:
        processor = transformers.AutoProcessor.from_pretrained(checked, **options)
    except Exception as error:
        if isinstance(error, ImportError):
            raise HostError(needed_first(f"The processor of {source}", error)) from error
        raise HostError(f"{source} has no processor that can be loaded: {_brief(error)}") from error
    # Where there is only a tokenizer, AutoProcessor gives that.
    if getattr(processor, "image_processor", None) is None:
        raise HostError(
            f"{source} has no processor for images: AutoProcessor found a {type(processor).__name__}, which takes none."
        )
    return processor


def small_host(name: str) -> tuple[nn.Module, Any] | None:
    """An adapter's small random model and its processor; None where it has none.

    Args:
        name: of the host.

    Raises:
        HostError: a package that the processor needs is not installed.
    """
    tiny: Callable[[], tuple[nn.Module, Any]] | None = getattr(HOSTS.get(name), "tiny", None)
    if tiny is None:
        return None
    with installed_first(f"The small host of {name!r}"):
        return tiny()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own messages and progress bars off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _own_class(source: str, name: str, auto_map: Mapping[str, Any]) -> Any:
    """A class of the code that comes with a checkpoint; None when its config points to none of that name."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    for reference in auto_map.values():
        if isinstance(reference, str) and reference.rpartition(".")[2] == name:
            try:
                return get_class_from_dynamic_module(reference, source)
            except Exception as error:
                raise HostError(
                    f"{source}: its own code ({reference}) cannot be imported here: {_brief(error)}{_seen([name])}"
                ) from error
    return None


def _class_names(source: str) -> list[str]:
    """Of the model classes that a checkpoint names, also where transformers does not know its kind of config."""
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(source)
    except Exception:
        return []
    return list(values.get("architectures") or [])


def _elsewhere(source: str | Path, names: Sequence[str]) -> str:
    """What to do with a class that an adapter knows and the installed transformers does not; else empty."""
    import transformers

    for adapter in HOSTS:
        for name in names:
            if name in adapter.classes and not hasattr(transformers, name):
                return (
                    f"{source}: transformers {transformers.__version__} has no class {name!r}, which host "
                    f"{adapter.name!r} patches.{_seen([name])} If it has code of its own, load it with that and check "
                    "it from Python: vega3d_plugin.doctor.examine(model, processor)."
                )
    return ""


def _seen(names: Sequence[str]) -> str:
    """The versions with which a host of one of these classes was seen to work, for the end of a message."""
    for adapter in HOSTS:
        if seen_with(adapter) and not {*names}.isdisjoint(adapter.classes):
            return f" Host {adapter.name!r} was tested with {seen_with(adapter)}."
    return ""


def _folder_or_id(source: str | Path) -> str:
    return str(local_folder(source, HostError) or source)


def _not_a_model(source: str) -> str:
    """What the folder holds instead, where that can be told."""
    folder = Path(source)
    if (folder / CONFIG_FILE).is_file() or (folder / "adapter_config.json").is_file():
        return (
            f"{source} holds a branch or a PEFT adapter, not a host: pass the host as MODEL and this folder "
            "as --branch."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        return f"{source} holds no model: there is no config.json in it."
    return ""


def _brief(error: BaseException) -> str:
    """The beginning of what others' errors say; some go on with everything they know."""
    first = str(error).strip().partition("\n")[0]
    return textwrap.shorten(f"{type(error).__name__}: {first}", 240, placeholder=" ...")


def host_processor(model: nn.Module, source: Any) -> Any:
    """The processor that lies beside a host's weights, or None when there is none that takes images."""
    from transformers import AutoProcessor

    # A model whose code came with its checkpoint was loaded with the user's word for that code.
    trusted = type(model).__module__.startswith("transformers_modules.")
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trusted)
    except Exception:
        return None
    # Where there is only a tokenizer, AutoProcessor gives that.
    return processor if getattr(processor, "image_processor", None) is not None else None
