"""Fused tokens in files: an unpatched host that is given them says what the patched one says, and servers take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import lmms_eval_task
from torch import nn
from typer.testing import CliRunner

import vega3d
from vega3d_llava_video import tiny_transformers as tiny_llava
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import BadRowsError, HostError
from vega3d_plugin.evaluation.answering.parts import AnswersError
from vega3d_plugin.evaluation.harness_host import EvaluatedHost, HostArguments
from vega3d_plugin.evaluation.serving.export import export_embeddings
from vega3d_plugin.evaluation.serving.files import (
    ServingError,
    fused_tokens_in,
    read_tokens,
    sglang_inputs,
    vllm_inputs,
    write_tokens,
)
from vega3d_plugin.evaluation.serving.tokens import fused_tokens, fused_tokens_of, logits_of, placeholders
from vega3d_plugin.hosts.peft import base_model
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.scenes.view_points import POINTS
from vega3d_plugin.training.answers import encode_question
from vega3d_plugin.training.rows.conversation import Medium, Turn
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_qwen_vl import tiny as tiny_qwen

HOSTS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "llava_onevision": (tiny_llava.tiny_model, tiny_llava.tiny_processor),
    **{
        family: (partial(tiny_qwen.tiny_model, family), partial(tiny_qwen.tiny_processor, family))
        for family in ("qwen2_5_vl", "qwen3_vl")
        if family in tiny_qwen.available_families()
    },
}
DATA = DataSettings.parse({"files": ("-",), "frames": 4})


def picture(seed: int, height: int = 84) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, 112, 3), dtype=np.uint8))


IMAGE, OTHER = Medium("image", picture(0)), Medium("image", picture(1, 56))
VIDEO = Medium("video", [picture(seed) for seed in range(2, 6)])
PROMPTS: dict[str, tuple[str | Medium, ...]] = {
    "image": (IMAGE, "How many?"),
    "images": (IMAGE, "and", OTHER, "How many?"),
    "video and image": (VIDEO, "What?", OTHER),
}


def shaken(model: nn.Module, processor: Any) -> nn.Module:
    """Patched, with a branch that changes the tokens."""
    vega3d.patch(model, "tiny-wan", processor=processor)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vega3d.get_handle(model).parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * 0.3
    return model


def encoded(processor: Any, prompt: str) -> dict[str, Any]:
    return encode_question(Encoder(processor, DATA), [Turn("user", PROMPTS[prompt])])


@pytest.mark.parametrize("name", HOSTS)
def test_an_unpatched_host_given_fused_tokens_says_the_same(name: str) -> None:
    make, make_processor = HOSTS[name]
    processor, bare = make_processor(), make()
    model = shaken(make(), processor)
    for prompt in ("images", "video and image"):
        inputs = encoded(processor, prompt)
        tokens = fused_tokens(model, inputs)
        online = logits_of(model, inputs)
        assert torch.equal(logits_of(bare, inputs, tokens), online), prompt
        # What is added behind the first layers counts too.
        if len(tokens.streams(next(iter(tokens.embeds)))) > 1:
            cut = {kind: embeds.clone() for kind, embeds in tokens.embeds.items()}
            for embeds in cut.values():
                embeds[:, tokens.hidden_size :] = 0
            without = logits_of(bare, inputs, type(tokens)(tokens.hidden_size, cut))
            assert not torch.equal(without, online), prompt
    # The branch does change what is said.
    assert not torch.equal(logits_of(bare, inputs), online)
    assert fused_tokens(model, encode_question(Encoder(processor, DATA), [Turn("user", ("Hi",))])).embeds == {}


@pytest.mark.parametrize("name", HOSTS)
def test_prompts_go_together_and_have_the_tokens_that_they_have_alone(name: str) -> None:
    make, make_processor = HOSTS[name]
    processor = make_processor()
    model = shaken(make(), processor)
    text = encode_question(Encoder(processor, DATA), [Turn("user", ("Hi",))])
    prompts = [encoded(processor, "images"), text, encoded(processor, "image"), encoded(processor, "images")]
    calls: list[int] = []
    hook = base_model(model).register_forward_pre_hook(
        lambda module, args, given: calls.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    together = fused_tokens_of(model, prompts, processor.tokenizer.pad_token_id)
    hook.remove()
    # The two of several pictures and, where pictures' sizes need not be equal, the one of one picture too.
    assert max(calls) >= 2
    assert sum(calls) == 4
    assert together[1].embeds == {}
    for inputs, tokens in zip(prompts, together, strict=True):
        alone = fused_tokens(model, inputs)
        assert tokens.embeds.keys() == alone.embeds.keys()
        assert all(torch.allclose(tokens.embeds[kind], alone.embeds[kind], atol=1e-5) for kind in alone.embeds)


def test_tokens_of_another_prompt_are_refused() -> None:
    make, make_processor = HOSTS["qwen2_5_vl"]
    model, processor = make(), make_processor()
    tokens = fused_tokens(model, encoded(processor, "image"))
    with pytest.raises(HostError, match=r"another prompt: 20 placeholders of images in the prompt, 12 tokens"):
        logits_of(model, encoded(processor, "images"), tokens)
    with pytest.raises(HostError, match="no table of input embeddings"):
        fused_tokens(nn.Linear(2, 2), encoded(processor, "image"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a host, a branch and rows: an image, two images, a video, text alone."""
    root = tmp_path_factory.mktemp("serving")
    lmms_eval_task.write_host_and_branch(root)
    (root / "frames").mkdir()
    for number in range(4):
        picture(number, 56 + 28 * number).save(root / f"{number}.png")
        picture(9 + number).save(root / "frames" / f"{number}.png")
    rows: list[dict[str, Any]] = [
        {"id": "one", "image": "0.png", "conversations": asked("<image>\nHow many?", "4")},
        {"id": "two", "images": ["1.png", "2.png"], "conversations": asked("<image> or <image>?", "A")},
        {"id": "film", "video": "frames", "conversations": asked("<video>\nWhere?", "left")},
        {"id": "text", "conversations": asked("Hello?", "Yes")},
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def asked(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def arguments(root: Path, **more: Any) -> HostArguments:
    return HostArguments.parse(
        {"pretrained": str(root / "host"), "branch": str(root / "branch"), "device": "cpu", **more}
    )


@pytest.fixture(scope="module")
def load() -> Callable[[HostArguments, DataSettings], EvaluatedHost]:
    loaded: list[EvaluatedHost] = []

    def load(arguments: HostArguments, data: DataSettings) -> EvaluatedHost:
        loaded[:] = loaded or [EvaluatedHost(arguments, data)]
        loaded[0].encoder = Encoder(loaded[0].processor, data)
        return loaded[0]

    return load


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (out / "index.jsonl").read_text().splitlines()]


def test_an_export_is_what_servers_take(root: Path, tmp_path: Path, load: Any) -> None:
    out = tmp_path / "fused"
    found = export_embeddings(arguments(root), [root / "rows.jsonl"], out, host=load, verify=4)
    assert (found.questions, found.missing) == (4, 0)
    run = json.loads((out / "index.run.json").read_text())
    model = run["settings"]["model"]
    assert model["branch"]["prior_fingerprint"]
    assert model["branch"]["fingerprint"].startswith("sums")
    one, two, film, text = lines(out)
    assert (one["sample_id"], one["ground_truth"], one["run"]) == ("one", "4", run["run"])
    assert "prediction" not in one
    assert two["image_tokens"] == [12, 16]
    bare = HOSTS["qwen2_5_vl"][0]()
    host = load(None, DATA)
    for line, medium in ((one, IMAGE), (film, VIDEO)):
        tensors = read_tokens(out, line)
        inputs = encode_question(host.encoder, [Turn("user", read_parts(root, medium))])
        assert torch.equal(tensors["input_ids"], inputs["input_ids"][0])
        tokens = fused_tokens_in(tensors, line)
        assert torch.equal(logits_of(bare, inputs, tokens), logits_of(host.model, inputs))

    request = vllm_inputs(out, two)
    assert request["prompt"].count("<|image_pad|>") == 2
    assert request["prompt"].endswith("<|im_start|>assistant\n")
    image = request["multi_modal_data"]["image"]
    assert image["image_embeds"].shape == (28, 64)
    assert image["image_grid_thw"].tolist() == [[1, 6, 8], [1, 8, 8]]
    video = vllm_inputs(out, film)["multi_modal_data"]["video"]
    assert video["video_embeds"].shape == (int(video["video_grid_thw"].prod()) // 4, 64)
    assert vllm_inputs(out, text) == {"prompt": text["prompt"]}

    request = sglang_inputs(out, film)
    (item,) = request["video_data"]
    assert request["input_ids"].count(tiny_id("<|video_pad|>")) == item["precomputed_embeddings"].shape[0]
    assert {"video_grid_thw", "second_per_grid_ts"} <= item.keys()
    assert sglang_inputs(out, two)["image_data"][0]["image_grid_thw"].shape == (2, 3)
    assert sglang_inputs(out, text).keys() == {"input_ids"}


#: What SGLang 0.5.23 takes for its own in an item (its ``base_processor.py``), and what models ask for.
SGLANG_OWN = {"format", "modality", "precomputed_embeddings"}
SGLANG_OF_MODELS = {"image_grid_thw", "video_grid_thw", "second_per_grid_ts", "image_sizes"}


def sglang_items(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The items of a request by their modality, after the checks that SGLang makes of them."""
    found = {}
    for key, items in request.items():
        if key == "input_ids":
            assert isinstance(items, list)
            assert all(type(token) is int for token in items)
            continue
        # "when providing a 'processor_output' or 'precomputed_embedding', you must pass exactly one item"
        (item,) = items
        assert item["format"] == "processor_output"
        assert key == f"{item['modality'].lower()}_data"
        assert item.keys() <= SGLANG_OWN | SGLANG_OF_MODELS
        found[item["modality"]] = item
    return found


@pytest.mark.parametrize("name", HOSTS)
def test_sglang_finds_a_token_for_each_placeholder_and_what_positions_need(name: str, tmp_path: Path) -> None:
    """Its own rules, since its engine was not run: tokens go to the stretches of a kind's placeholder, in order."""
    make, make_processor = HOSTS[name]
    processor = make_processor()
    model = shaken(make(), processor)
    inputs = encoded(processor, "video and image")
    tokens = fused_tokens(model, inputs)
    # Neither points nor pixels nor masks are a server's.
    checksum = write_tokens(
        tmp_path / "t.safetensors", tokens, {**inputs, POINTS: torch.zeros(1), "attention_mask": torch.ones(1)}
    )
    line = {"file": "t.safetensors", "checksum": checksum, "hidden_size": tokens.hidden_size}
    assert not {POINTS, "attention_mask", "pixel_values", "pixel_values_videos"} & read_tokens(tmp_path, line).keys()
    request = sglang_inputs(tmp_path, line)
    items = sglang_items(request)
    assert items.keys() == {"IMAGE", "VIDEO"}
    ids = torch.tensor(request["input_ids"])
    for kind, token in placeholders(model).items():
        embeds = items[kind.upper()]["precomputed_embeddings"]
        assert embeds.ndim == 2
        assert int((ids == token).sum()) == len(embeds)
        grid = items[kind.upper()].get(f"{kind}_grid_thw")
        # It cuts an item apart only where its length is that of all patches, which no length of tokens is.
        assert grid is None or int(grid.prod(dim=-1).sum()) == 4 * len(embeds)
    if "second_per_grid_ts" in inputs:
        assert "second_per_grid_ts" in items["IMAGE"]


def read_parts(root: Path, medium: Medium) -> tuple[Any, ...]:
    if medium.kind == "image":
        return (Medium("image", root / "0.png"), "\nHow many?")
    return (Medium("video", sorted((root / "frames").iterdir())), "\nWhere?")


def tiny_id(token: str) -> int:
    return int(tiny_qwen.tiny_tokenizer().convert_tokens_to_ids(token))


def test_a_stopped_export_is_resumed_and_another_is_refused(root: Path, tmp_path: Path, load: Any) -> None:
    whole, out = tmp_path / "whole", tmp_path / "fused"
    export_embeddings(arguments(root), [root / "rows.jsonl"], whole, host=load, verify=0)

    class StopError(Exception):
        pass

    def stop(total: int, found: int) -> Callable[[int], None]:
        left = iter([None])

        def tick(count: int) -> None:
            if next(left, StopError) is StopError:
                raise StopError

        return tick

    with pytest.raises(StopError):
        export_embeddings(arguments(root), [root / "rows.jsonl"], out, host=load, start=stop)
    # A file that was lost in between is written anew.
    (out / "tokens/000/000000.safetensors").unlink()
    seen: list[tuple[int, int]] = []
    export_embeddings(
        arguments(root), [root / "rows.jsonl"], out, host=load, start=lambda *n: seen.append(n) or (lambda count: None)
    )
    assert seen == [(4, 1)]
    assert lines(out) == lines(whole)
    assert all(read_tokens(out, line) for line in lines(out))
    # Several at once, behind the one that is compared.
    export_embeddings(arguments(root), [root / "rows.jsonl"], tmp_path / "some", host=load, batch_size=3)
    for line, alone in zip(lines(tmp_path / "some"), lines(whole), strict=True):
        assert {k: v for k, v in line.items() if k not in ("run", "checksum")} == {
            k: v for k, v in alone.items() if k not in ("run", "checksum")
        }
        one, other = read_tokens(tmp_path / "some", line), read_tokens(whole, alone)
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[key].float(), other[key].float(), atol=1e-5) for key in one)
    # There is nothing left to do, and no model is loaded for it.
    export_embeddings(arguments(root), [root / "rows.jsonl"], out, host=None)  # type: ignore[arg-type]
    with pytest.raises(AnswersError, match="fused tokens of another run:\n  limit: None there, 2 here"):
        export_embeddings(arguments(root), [root / "rows.jsonl"], out, host=load, limit=2)
    file = out / lines(out)[0]["file"]
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(ServingError, match="not what the index says"):
        vllm_inputs(out, lines(out)[0])
    file.unlink()
    with pytest.raises(ServingError, match="is missing, though index"):
        export_embeddings(arguments(root), [root / "rows.jsonl"], out, host=load)


def test_a_host_that_cannot_be_served_so_is_found_out(root: Path, tmp_path: Path, load: Any) -> None:
    host = load(arguments(root), DATA)

    def again(module: Any, args: Any, given: Any, output: Any) -> Any:
        """A host that looks at its pixels a second time."""
        output["logits"] = output["logits"] + given["pixel_values"].mean()
        return output

    hook = host.model.register_forward_hook(again, with_kwargs=True)
    with pytest.raises(ServingError, match="uses pictures in another way too"):
        export_embeddings(arguments(root), [root / "rows.jsonl"], tmp_path, host=load, limit=1)
    hook.remove()
    (root / "bad.jsonl").write_text(json.dumps({"image": "nowhere.png", "conversations": asked("<image>?", "4")}))
    with pytest.raises(BadRowsError, match=r"nowhere\.png"):
        export_embeddings(arguments(root), [root / "bad.jsonl"], tmp_path / "bad", host=load)


def test_the_command(root: Path, tmp_path: Path) -> None:
    given = ["--data", str(root / "rows.jsonl"), "--out", str(tmp_path / "fused"), "--device", "cpu", "--json"]
    done = CliRunner().invoke(
        app, ["export", "embeddings", str(root / "host"), "--branch", str(root / "branch"), *given]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["questions"] == 4
    assert len(lines(tmp_path / "fused")) == 4
    teaches = CliRunner().invoke(app, ["export", "embeddings", "--help"]).output
    assert "vllm_inputs" in teaches
    assert max(map(len, teaches.splitlines())) <= 80
