"""The fusion that uses the instruction: which words of which prompt reach the fuser, in every host."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import hosts
import pytest
import test_promises as promises
import torch
import torch.nn.functional as F
from hosts import Batch, Host, logits
from rows.host import random_picture
from rows.llava_package import PLACEHOLDER, pictures, prompt
from rows.openvla import batch_of
from rows.openvla import pictures as observations
from torch import Tensor, nn

import vega3d
from vega3d_llava_video import tiny_transformers
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.hosts.hooks import MethodReplacement
from vega3d_plugin.training.answers import answer_likelihood
from vega3d_qwen_vl import tiny as tiny_qwen

FUSION = {"fusion": "context_gated", "init": "released"}
#: One row for each adapter.
NAMES = ("qwen2_5_vl", "llava_double", "llava_onevision", "smolvlm", "oft_double")
ROWS = [replace(host, options={**host.options, **FUSION}) for host in hosts.HOSTS if host.name in NAMES]
IGNORED = -100


@pytest.fixture(params=ROWS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    row: Host = request.param
    return row


def named(name: str) -> Host:
    return next(host for host in ROWS if host.name == name)


def patched(host: Host, **settings: Any) -> nn.Module:
    return hosts.patch(host.build(), **{**host.options, **settings})


@cache
def kept(name: str) -> nn.Module:
    """A patched host for tests that leave it as it was."""
    return patched(named(name))


@contextmanager
def contexts(model: nn.Module) -> Iterator[list[Tensor]]:
    """The instruction of every row of tokens that is fused."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.extend(kwargs["context"].detach())

    hook = vega3d.get_handle(model).branch.fuser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def expected(model: nn.Module, words: Tensor) -> Tensor:
    """The mean of these embedded words, of length 1."""
    with torch.no_grad():
        return F.normalize(model.get_input_embeddings()(words).mean(dim=0), dim=0)


def text_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The words after the first picture's mark, found by what the host's config calls the marks."""
    config = model.config.to_dict()
    keys = ("image", "video", "vision_start", "vision_end")
    marks = {config.get(f"{key}_token_{end}") for key in keys for end in ("id", "index")} - {None}
    picture = (ids < 0) | torch.isin(ids, torch.tensor(sorted(marks) or [PLACEHOLDER]))
    first = int(picture.nonzero()[0]) if bool(picture.any()) else -1
    return ids[first + 1 :][~picture[first + 1 :]][-96:]


def asked(batch: Batch) -> Tensor:
    """Which tokens of the first row are no answer; OpenVLA-OFT's forward is always given answers."""
    labels = batch.get("labels")
    return torch.ones_like(batch["input_ids"][0], dtype=torch.bool) if labels is None else labels[0] == IGNORED


def test_the_words_after_the_picture_reach_the_fuser(host: Host) -> None:
    model, batch = kept(host.name), host.batch()
    with contexts(model) as found:
        logits(model, batch)
    words = expected(model, text_of(model, batch["input_ids"][0][asked(batch)]))
    assert len(found) == sum(t for t, _, _ in host.grids)
    for vector in found:
        torch.testing.assert_close(vector, words)


def test_the_question_changes_the_gates_and_nothing_else_does(host: Host) -> None:
    model, batch = kept(host.name), host.batch()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    last = int(asked(batch).nonzero()[-1])
    other["input_ids"][0, last] = 5 + (int(other["input_ids"][0, last]) == 5)
    gates = []
    for given in (batch, other, batch):
        with vega3d.record_gates(model) as found:
            logits(model, given)
        gates.append(torch.cat([gate.flatten() for gate in found]))
    assert not torch.equal(gates[0], gates[1])
    assert torch.equal(gates[0], gates[2])


def test_in_training_the_answer_is_no_instruction(host: Host) -> None:
    model, batch = kept(host.name).train(), host.batch()
    ids = batch["input_ids"]
    labels = batch.get("labels", torch.cat([torch.full_like(ids[:, 2:], IGNORED), ids[:, -2:]], dim=1))
    with contexts(model) as found:
        model(**{**batch, "labels": labels})
    model.eval()
    torch.testing.assert_close(found[0], expected(model, text_of(model, ids[0][labels[0] == IGNORED])))


def test_generate_sees_what_the_forward_sees(host: Host) -> None:
    model, batch = kept(host.name), host.batch()
    with contexts(model) as forward:
        logits(model, batch)
    for options in ({}, {"num_beams": 2}):
        if options and promises.test_generate_with_beams.__name__ in host.limits:
            continue
        with contexts(model) as found:
            host.generate(model, batch, max_new_tokens=2, **options)
        assert len(found) >= len(forward)
        for vector in found:
            torch.testing.assert_close(vector, forward[0])


# Promises of the library, with this fusion.


@pytest.mark.once
@pytest.mark.parametrize(
    "promise",
    [
        promises.test_unpatch_restores_everything,
        promises.test_gradient_checkpointing,
        promises.test_a_batch_without_images_touches_every_parameter,
    ],
)
def test_promises(host: Host, promise: Any) -> None:
    promise(host)


@pytest.mark.once
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_double"])
def test_saved_and_loaded(name: str, tmp_path: Any) -> None:
    host = named(name)
    model, batch = patched(host), host.batch()
    hosts.freeze_host(model)
    hosts.train(model, batch, steps=1)
    vega3d.save_pretrained(model, tmp_path)
    options = {key: value for key, value in host.options.items() if key not in FUSION}
    fresh = vega3d.load_pretrained(host.build(), tmp_path, **options)
    assert torch.equal(logits(fresh, batch), logits(model, batch))


@pytest.mark.once
def test_copies_embed_with_their_own_table(host: Host) -> None:
    if promises.test_pickle_and_torch_save.__name__ in host.limits:
        # OpenVLA's own code cannot be pickled; copied, its towers run the original's weights.
        models = [copy.deepcopy(patched(host))]
    else:
        model = patched(host)
        models = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in models:
        batch = host.batch()
        with torch.no_grad():
            twin.get_input_embeddings().weight.mul_(torch.linspace(0.5, 2, twin.get_input_embeddings().weight.shape[1]))
        with contexts(twin) as found:
            host.generate(twin, batch, max_new_tokens=1)
        # Not the original's, whose table was left as it was.
        torch.testing.assert_close(found[0], expected(twin, text_of(twin, batch["input_ids"][0][asked(batch)])))


# Batches of several prompts.


def qwen_or_llava(name: str, side: str) -> tuple[Batch, list[int]]:
    """Three prompts with one, two and no picture; and which prompt each picture belongs to."""
    tiny: Any = tiny_qwen if name in tiny_qwen.CLASSES else tiny_transformers
    processor = tiny.tiny_processor(name)
    processor.tokenizer.padding_side = side
    mark = "<|vision_start|><|image_pad|><|vision_end|>" if tiny is tiny_qwen else "<image>"
    texts = [f"{mark} left?", f"{mark} or {mark} which of them is nearer?", "no picture"]
    sizes = ((64, 64), (64, 96), (64, 64))
    given = [random_picture(*size, seed=row) for row, size in enumerate(sizes)]
    batch = dict(processor(text=texts, images=[given[:1], given[1:]], padding=True, return_tensors="pt"))
    return batch, [0, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_each_picture_meets_its_own_prompt(name: str, side: str) -> None:
    host = named(name)
    model = kept(host.name)
    batch, rows = qwen_or_llava(name, side)
    prompts = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    with contexts(model) as found:
        logits(model, batch)
    # LLaVA-OneVision cuts pictures into tiles; those of one picture follow each other.
    wanted = [expected(model, text_of(model, prompts[row])) for row in rows]
    met = [next(i for i, vector in enumerate(wanted) if torch.allclose(vector, each, atol=1e-5)) for each in found]
    assert met == sorted(met)
    assert {rows[i] for i in met} == {0, 1}
    if name == "qwen2_5_vl":
        assert [rows[i] for i in met] == rows
    for options in ({}, {"num_beams": 2}):
        with contexts(model) as generated:
            model.generate(**batch, max_new_tokens=2, **options)
        again = [next(i for i, v in enumerate(wanted) if torch.allclose(v, each, atol=1e-5)) for each in generated]
        assert len(again) % len(met) == 0
        assert again.count(0) * len(met) == met.count(0) * len(again)


@pytest.mark.once
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_entry_of_the_llava_package_meets_its_own_prompt(side: str) -> None:
    model = kept("llava_double")
    first, second = prompt(1)[0], prompt(1, 3)[0] + 20 * (prompt(1, 3)[0] > 0)
    pad = torch.zeros(len(second) - len(first), dtype=torch.long)
    parts = [pad, first] if side == "left" else [first, pad]
    ids = torch.stack([torch.cat(parts), second])
    batch = {
        "input_ids": ids,
        "attention_mask": ids != 0,
        "images": [pictures(1, seed=1), pictures(4, seed=2), pictures(1, seed=3)],
        "modalities": ["image", "video", "image"],
    }
    with contexts(model) as found:
        logits(model, batch)
    a, b = (expected(model, text_of(model, words)) for words in (first, second))
    # Images are fused before videos are pooled.
    for vector, wanted in zip(found, [a, b, b, b, b, b], strict=True):
        torch.testing.assert_close(vector, wanted)


def test_each_observation_of_openvla_meets_its_own_prompt() -> None:
    model = hosts.patch(hosts.named("openvla_double").build(), **FUSION)
    batch = batch_of(observations(2))
    batch["input_ids"][1, 3:] += 11
    with contexts(model) as found:
        logits(model, batch)
    for vector, words in zip(found, batch["input_ids"], strict=True):
        torch.testing.assert_close(vector, expected(model, words))


@pytest.mark.once
def test_threads_do_not_see_each_others_prompts() -> None:
    host = named("qwen2_5_vl")
    model, batch = kept(host.name), host.batch()
    batches = [{**batch, "input_ids": batch["input_ids"].clone()} for _ in range(2)]
    for number, each in enumerate(batches):
        each["input_ids"][0, -1] = 5 + number
    alone = [logits(model, each) for each in batches]
    together: dict[int, list[bool]] = {}

    def run(number: int) -> None:
        calls = [logits(model, batches[number]) for _ in range(2)]
        together[number] = [torch.equal(call, alone[number]) for call in calls]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {number: [True] * 2 for number in range(2)}


# What cannot be read.


def without_ids(model: nn.Module, batch: Batch) -> Batch:
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    return {**rest, "inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}


def test_pictures_without_ids_are_told_their_prompt_by_the_user() -> None:
    host = named("qwen2_5_vl")
    model, batch = kept(host.name), host.batch()
    base: Any = getattr(model, "model", model)
    tower = base.visual if hasattr(base, "visual") else model.visual
    wanted = expected(model, text_of(model, batch["input_ids"][0]))

    def encode() -> None:
        with torch.no_grad():
            tower(batch["pixel_values"], grid_thw=batch["image_grid_thw"])

    with pytest.raises(HostError, match=r"no input_ids .* inside `with vega3d.instruction\(model, input_ids\):`"):
        encode()
    with contexts(model) as found, vega3d.instruction(model, batch["input_ids"]):
        encode()
    assert len(found) == len(batch["image_grid_thw"])
    for vector in found:
        torch.testing.assert_close(vector, wanted)
    # Switched off it asks for nothing.
    with vega3d.disabled(model):
        encode()


def test_training_without_labels() -> None:
    host = named("qwen2_5_vl")
    model, batch = patched(host).train(), host.batch()
    with pytest.raises(HostError, match="trains without labels"):
        model(**batch)
    with vega3d.instruction(model, batch["input_ids"], labels=torch.full_like(batch["input_ids"], IGNORED)):
        model(**batch).logits.sum().backward()
    parameters = dict(vega3d.get_handle(model).branch.fuser.named_parameters())
    assert all(bool(parameters[name].grad.any()) for name in parameters)


def test_several_samples_in_one_row() -> None:
    host = named("qwen2_5_vl")
    model, batch = kept(host.name), host.batch()
    places = torch.arange(batch["input_ids"].shape[1])[None] % 9
    with pytest.raises(HostError, match="several samples in one row"):
        model(**{**batch, "position_ids": places})


def test_other_fusions_are_left_alone() -> None:
    host = named("qwen2_5_vl")
    model = hosts.patch(host.build())
    assert not any(isinstance(value, MethodReplacement) for value in model.__dict__.values())
    logits(model, without_ids(model, host.text_batch()))


def test_the_likelihood_of_an_answer_is_not_that_of_an_instruction() -> None:
    host = named("qwen2_5_vl")
    model, batch = kept(host.name), host.batch()
    labels = batch["input_ids"].clone()
    labels[:, :-2] = IGNORED
    with contexts(model) as found:
        answer_likelihood(model, {**batch, "labels": labels})
    torch.testing.assert_close(found[0], expected(model, text_of(model, batch["input_ids"][0][:-2])))
