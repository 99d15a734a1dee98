"""The empty prompt by way of diffusers' pipelines: every source, their order, the cache, what can be wrong."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import cut
from support.toys.t5 import TEXT_DIM, write_t5
from torch import Tensor

from vega3d_plugin.contracts.errors import PromptError
from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.priors.prompts import by_pipeline as module
from vega3d_plugin.priors.prompts.by_pipeline import EmptyTextTokenizer, pipeline_prompt, prompt_tensor

PATTERNS = ["text_encoder/*", "tokenizer/*", "model_index.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a transformer and a T5 text encoder."""
    path = tmp_path / "checkpoint"
    (path / "transformer").mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, path / "transformer" / "diffusion_pytorch_model.safetensors")
    write_t5(path, "LTXPipeline")
    return path


def encode(pipeline: Any) -> dict[str, Tensor]:
    embeds, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=6)
    return {"embeds": embeds, "mask": mask}


def never(pipeline: Any) -> dict[str, Tensor]:
    raise AssertionError("computed although it was there")


def prompt(
    folder: Path, encode: Callable[[Any], dict[str, Tensor]] = encode, pipeline: str = "LTXPipeline", name: str = ""
) -> dict[str, Tensor]:
    settings = PriorSettings(name=name or "tiny-wan", pretrained=str(folder))
    return pipeline_prompt(folder, settings, True, pipeline, encode, PATTERNS)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def expected(folder: Path, masked: bool = False) -> Tensor:
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    ids = torch.tensor([[1] + [0] * 5])
    with torch.no_grad():
        return model(ids, attention_mask=ids if masked else None)[0]


# Computed


def test_computed_as_the_pipeline_computes_it(folder: Path) -> None:
    found = prompt(folder)
    torch.testing.assert_close(found["embeds"], expected(folder))
    assert found["embeds"].dtype == torch.float32
    assert found["mask"].tolist() == [[True] + [False] * 5]
    assert not found["embeds"].requires_grad


def test_the_same_as_by_the_whole_pipeline_with_a_real_tokenizer(folder: Path) -> None:
    """The stand-in for T5's tokenizer says what a tokenizer of that class says."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline
    from transformers import T5EncoderModel, T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    assert tokenizer("a cat").input_ids != tokenizer("").input_ids
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    whole = LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, encoder, tokenizer, None)
    with torch.no_grad():
        assert same(prompt(folder), encode(whole))


@pytest.mark.parametrize("length", [1, 6, 128])
def test_the_empty_text_in_tokens(folder: Path, length: int) -> None:
    from transformers import T5TokenizerFast

    real, ours = T5TokenizerFast.from_pretrained(folder / "tokenizer"), EmptyTextTokenizer(folder)
    assert ours.model_max_length == real.model_max_length == 512
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    for text in ("", ["", ""]):
        for given in (options, {"padding": "longest", "return_tensors": "pt"}):
            theirs, own = real(text, **given), ours(text, **given)
            assert torch.equal(theirs.input_ids, own.input_ids)
            assert torch.equal(theirs["attention_mask"], own["attention_mask"])
    for text in ("a cat", " "):
        with pytest.raises(PromptError, match="Only the empty prompt"):
            ours(text)


def test_nothing_but_the_text_encoder_is_needed(folder: Path) -> None:
    """No scheduler, no VAE, and no SentencePiece file: repositories have one that needs a package more."""
    shutil.rmtree(folder / "tokenizer")
    torch.testing.assert_close(prompt(folder)["embeds"], expected(folder))


@pytest.mark.parametrize(
    ("pipeline", "masked"),
    [
        ("CogVideoXPipeline", False),
        ("LTXPipeline", False),
        ("MochiPipeline", True),
        ("CosmosTextToWorldPipeline", True),
    ],
)
def test_pipelines_that_are_in_use(folder: Path, pipeline: str, masked: bool) -> None:
    """Whether the text encoder is told of the padding is the pipeline's matter."""

    def encode(pipe: Any) -> dict[str, Tensor]:
        return {"embeds": pipe.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=6)[0]}

    torch.testing.assert_close(prompt(folder, encode, pipeline)["embeds"][:, :1], expected(folder, masked)[:, :1])


def test_plain_values_of_the_index_reach_the_pipeline(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_zeros_for_empty_prompt": True}))

    def encode(pipe: Any) -> dict[str, Tensor]:
        return {"forced": torch.tensor(pipe.config.force_zeros_for_empty_prompt)}

    assert bool(prompt(folder, encode, "MochiPipeline")["forced"])


def test_the_text_encoder_is_let_go(folder: Path) -> None:
    kept: list[weakref.ref[Any]] = []

    def remember(pipeline: Any) -> dict[str, Tensor]:
        kept.append(weakref.ref(pipeline.text_encoder))
        return encode(pipeline)

    prompt(folder, remember)
    gc.collect()
    assert kept[0]() is None


@pytest.mark.parametrize(("stored", "computed"), [("float16", "float32"), ("bfloat16", "bfloat16")])
def test_the_dtype_it_is_computed_in(folder: Path, stored: str, computed: str) -> None:
    from transformers import T5EncoderModel

    T5EncoderModel.from_pretrained(folder / "text_encoder").to(getattr(torch, stored)).save_pretrained(
        folder / "text_encoder"
    )
    found: list[str] = []

    def look(pipeline: Any) -> dict[str, Tensor]:
        found.append(str(next(pipeline.text_encoder.parameters()).dtype).removeprefix("torch."))
        return encode(pipeline)

    assert prompt(folder, look)["embeds"].dtype == torch.float32
    assert found == [computed]


def test_under_inference_mode(folder: Path) -> None:
    with torch.inference_mode():
        found = prompt(folder)
    assert not found["embeds"].is_inference()


# The order of sources


def test_a_file_beside_the_weights_comes_first(folder: Path) -> None:
    tensors = {"embeds": torch.randn(1, 2, 4).half(), "mask": torch.tensor([[1, 0]]), "bools": torch.tensor([True])}
    save_file(tensors, folder / "empty_prompt.safetensors")
    found = prompt(folder, never)
    assert found["embeds"].dtype == torch.float32
    assert torch.equal(found["embeds"], tensors["embeds"].float())
    assert found["mask"].dtype == torch.int64
    assert found["bools"].dtype == torch.bool


def test_computed_once(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vega3d"):
        first = prompt(folder)
    assert sum("This happens once" in record.message for record in caplog.records) == 1
    assert same(prompt(folder, never), first)
    assert list(cache.glob("empty_prompt/*.safetensors"))


def test_the_text_encoder_may_be_deleted_afterwards(folder: Path) -> None:
    first = prompt(folder)
    shutil.rmtree(folder / "text_encoder")
    assert same(prompt(folder, never), first)
    save_file({"weight": torch.zeros(3)}, folder / "transformer" / "other.safetensors")
    with pytest.raises(PromptError, match="No empty prompt"):
        prompt(folder)


def test_the_text_encoder_may_be_used_again_elsewhere(folder: Path, tmp_path: Path) -> None:
    first = prompt(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(other / "transformer")
    assert same(prompt(other, never), first)


def test_another_text_encoder_is_computed_anew(folder: Path, tmp_path: Path) -> None:
    first = prompt(folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    write_t5(folder, "LTXPipeline", seed=8)
    found = prompt(folder)
    assert not same(found, first)
    torch.testing.assert_close(found["embeds"], expected(folder))


def test_priors_and_pipelines_do_not_share_prompts(folder: Path) -> None:
    prompt(folder)
    other = prompt(folder, lambda pipe: {"other": torch.ones(1)}, name="wan2.1-t2v-1.3b")
    assert sorted(other) == ["other"]
    assert sorted(prompt(folder, lambda pipe: {"mochi": torch.ones(1)}, "MochiPipeline")) == ["mochi"]


def test_a_damaged_cache_is_ignored(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = prompt(folder)
    for file in cache.glob("empty_prompt/*.safetensors"):
        file.write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING, "vega3d"):
        assert same(prompt(folder), first)
    assert "is ignored" in caplog.text
    assert same(prompt(folder, never), first)


@pytest.mark.skipif(os.name == "nt", reason="files where folders should be")
def test_a_cache_that_cannot_be_written(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file")
    with caplog.at_level(logging.WARNING, "vega3d"):
        prompt(folder)
    assert "VEGA3D_CACHE" in caplog.text


def test_from_the_hub_only_what_is_needed_and_only_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder.with_name("text")
    text.mkdir()
    for part in ("text_encoder", "tokenizer", "model_index.json"):
        shutil.move(folder / part, text / part)
    asked: list[list[str]] = []

    def download(settings: PriorSettings, patterns: list[str]) -> Path:
        asked.append(patterns)
        shutil.copytree(text, folder, dirs_exist_ok=True)
        return folder

    monkeypatch.setattr(module, "download", download)
    settings = PriorSettings(name="tiny-wan", pretrained="owner/name")
    first = pipeline_prompt(folder, settings, False, "LTXPipeline", encode, PATTERNS)
    assert asked == [PATTERNS]
    assert same(pipeline_prompt(folder, settings, False, "LTXPipeline", never, PATTERNS), first)
    assert asked == [PATTERNS]


# What can be wrong


def change_index(folder: Path, **values: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(folder: Path, key: str) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items() if name != key}
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no text encoder": (
        lambda f: shutil.rmtree(f / "text_encoder"),
        r"no text_encoder/\. Found: model_index\.json, tokenizer/, transformer/.*[Dd]ownload .*export-prompt tiny-wan",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index\.json cannot be read: .*is missing"),
    "no weights": (
        lambda f: (f / "text_encoder" / "model.safetensors").unlink(),
        r"text_encoder is incomplete: it has no model\*\.safetensors",
    ),
    "no config": (lambda f: (f / "text_encoder" / "config.json").unlink(), r"text_encoder is incomplete: config\.json"),
    "cut weights": (lambda f: cut(f / "text_encoder" / "model.safetensors"), "cannot be loaded as T5EncoderModel"),
    "a missing weight": (
        lambda f: drop(f, "encoder.final_layer_norm.weight"),
        r"lacks 1 weights of T5EncoderModel: encoder\.final_layer_norm\.weight",
    ),
    "a pickle": (
        lambda f: shutil.move(f / "text_encoder" / "model.safetensors", f / "text_encoder" / "pytorch_model.bin"),
        r"it has no model\*\.safetensors",
    ),
    "an unknown class": (
        lambda f: change_index(f, text_encoder=["transformers", "NoSuchModel"]),
        r"names NoSuchModel for text_encoder, which this transformers",
    ),
    "a function for a class": (
        lambda f: change_index(f, text_encoder=["transformers", "set_seed"]),
        r"names set_seed for text_encoder, which this transformers",
    ),
    "a class of another package": (
        lambda f: change_index(f, text_encoder=["os", "system"]),
        r"gives \['os', 'system'\] for text_encoder, not a class of transformers",
    ),
    "no vocabulary": (
        lambda f: [change_index(f, tokenizer=["transformers", "LlamaTokenizerFast"]), shutil.rmtree(f / "tokenizer")],
        r"no vocabulary in tokenizer/\. Found: nothing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_text_encoder_that_cannot_be_used(folder: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(PromptError, match=message):
        prompt(folder)


def test_numbers_that_are_none(folder: Path, cache: Path) -> None:
    with pytest.raises(PromptError, match=r"embeds \[1, 2\] holds NaN or infinity"):
        prompt(folder, lambda pipe: {"embeds": torch.tensor([[1.0, float("nan")]])})
    assert not list(cache.glob("**/*.safetensors"))


def test_a_file_beside_the_weights_that_cannot_be_used(folder: Path) -> None:
    path = folder / "empty_prompt.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(PromptError, match=r"empty_prompt\.safetensors cannot be read"):
        prompt(folder)
    save_file({}, path)
    with pytest.raises(PromptError, match="holds no tensors"):
        prompt(folder)


def test_a_tensor_of_a_prompt() -> None:
    embeds = torch.randn(3, TEXT_DIM)
    tensors = {"embeds": embeds, "mask": torch.ones(1, 3)}
    assert torch.equal(prompt_tensor(tensors, "embeds", TEXT_DIM), embeds[None])
    assert prompt_tensor({"embeds": embeds[None]}, "embeds", TEXT_DIM, lengths={3}).shape == (1, 3, TEXT_DIM)
    with pytest.raises(PromptError, match=r"holds embeds, mask, but no other \[1, tokens, 16\]"):
        prompt_tensor(tensors, "other", TEXT_DIM)
    with pytest.raises(PromptError, match=r"torch\.float32 \[1, 3, 16\], expected floating \[1, 4 or 5, 16\]"):
        prompt_tensor(tensors, "embeds", TEXT_DIM, lengths={5, 4})
    with pytest.raises(PromptError, match=r"expected floating \[1, tokens, 8\]"):
        prompt_tensor(tensors, "embeds", 8)
    with pytest.raises(PromptError, match=r"torch\.int64"):
        prompt_tensor({"embeds": embeds.long()}, "embeds", TEXT_DIM)
