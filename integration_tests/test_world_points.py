"""``positions: sin3d``: each token is given the world point that it shows, by depth and pose of its row's scene."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
from hosts import Batch, freeze_host, logits
from peft import LoraConfig, PeftModel, get_peft_model
from rows.transformers_llava import llava_batch
from torch import Tensor, nn

import vega3d
from vega3d_plugin.branch.positions import SinusoidEmbedding, discretised
from vega3d_plugin.contracts.clips import Clip
from vega3d_plugin.contracts.errors import BadRowsError, HostError, SavedBranchError, SceneError
from vega3d_plugin.hosts.probing import watching
from vega3d_plugin.scenes.coordinates import point_maps
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.training.answers import on_model
from vega3d_plugin.training.data import read_data
from vega3d_qwen_vl.tiny import tiny_processor

ROOM = "room:0?views=2&size=64x96"
POINTS = "vega3d_points"
QWEN, LLAVA = hosts.named("qwen2_5_vl"), hosts.named("llava")


@cache
def patched(name: str = "qwen2_5_vl", **settings: Any) -> nn.Module:
    return hosts.patch(hosts.named(name).build(), **settings)


def row_of(scene: Any = ROOM, question: str = "<video>Where?") -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Here."}]
    return {"scene": scene, "conversations": said} if scene else {"conversations": said}


def data_of(folder: Path, *rows: Any, **settings: Any) -> Any:
    file = folder / "rows.json"
    file.write_text(json.dumps(list(rows)))
    settings = {"frames": 2, "video_as": "images", **settings}
    return read_data(tiny_processor("qwen2_5_vl"), file, points=True, **settings)


def batch_of(folder: Path, *rows: Any, **settings: Any) -> Batch:
    data = data_of(folder, *rows, **settings)
    return dict(data.collator([data[i] for i in range(len(data))]))


def fused(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Clip]]:
    with watching(model) as records:
        logits(model, batch)
    (record,) = records
    return record.fused, record.clips


def test_a_branch_that_is_called_without_points_does_not_leave_the_positions_out() -> None:
    branch = vega3d.get_handle(patched(positions="sin3d")).branch
    clip = Clip(torch.rand(2, 3, 64, 96), vega3d.TokenGrid(1, 2, 3), "image")
    with pytest.raises(HostError, match="called without points"):
        branch(torch.zeros(6, branch.seam.hidden_size), [clip])


@pytest.mark.parametrize("video_as", ["images", "video"])
def test_rows_that_name_a_scene_bring_their_points(tmp_path: Path, video_as: str) -> None:
    """What is added is the embedding of the points that the scene itself says."""
    batch = batch_of(tmp_path, row_of(), video_as=video_as)
    with_points, clips = fused(patched(positions="sin3d"), batch)
    plain, _ = fused(patched(), on_model(patched(), batch))
    added = (with_points - plain).reshape(-1, plain.shape[-1])
    seen = point_maps(open_scene(ROOM)).resized((384, 384))
    clip = clips[0]
    places = seen.resized((clip.frames.shape[2], clip.frames.shape[3])).pooled((clip.grid.h, clip.grid.w)).points
    # Two frames of a video share a row of tokens.
    wanted = places if video_as == "images" else places.mean(dim=0)
    embedded = SinusoidEmbedding(plain.shape[-1])(discretised(wanted)).reshape(-1, plain.shape[-1])
    # A rounding error may move a token to the next voxel.
    same = torch.isclose(added, embedded, atol=1e-4).all(dim=-1).float().mean()
    assert float(same) > 0.9


@pytest.mark.once
def test_a_batch_of_scenes_is_what_each_is_alone(tmp_path: Path) -> None:
    rows = [row_of(), row_of(ROOM.replace("room:0", "room:3"))]
    model = patched(positions="sin3d")
    together, _ = fused(model, batch_of(tmp_path, *rows))
    alone = [fused(model, batch_of(tmp_path, row))[0] for row in rows]
    torch.testing.assert_close(together, torch.cat(alone))


def test_generate_and_beams_and_controls(tmp_path: Path) -> None:
    model, batch = patched(positions="sin3d"), batch_of(tmp_path, row_of())
    batch.pop("labels")
    plain = logits(patched(), on_model(patched(), batch))
    assert not torch.equal(logits(model, batch), plain)
    for options in ({}, {"num_beams": 2}):
        out = model.generate(**batch, max_new_tokens=2, **options)
        assert out.shape[0] == 1
    with vega3d.zeroed(model):
        assert not torch.equal(logits(model, batch), plain)
    with vega3d.disabled(model):
        assert torch.equal(logits(model, batch), plain)
        # Switched off it asks for nothing.
        logits(model, {key: value for key, value in batch.items() if key != POINTS})
    # Nothing is kept for the next call.
    with pytest.raises(HostError, match="no vega3d_points"):
        logits(model, {key: value for key, value in batch.items() if key != POINTS})


def test_a_host_that_crops_and_its_own_loop() -> None:
    scene = open_scene(ROOM)
    batch = llava_batch("llava")
    model = hosts.patch(LLAVA.build(), positions="sin3d")
    whole, cut = vega3d.view_points(scene), vega3d.view_points(scene, crop=(56, 56))
    seen = [logits(model, {**batch, POINTS: points}) for points in (whole, cut, cut)]
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    # As the values themselves, too; rounded to half precision they are refused.
    assert torch.equal(logits(model, {**batch, POINTS: cut.view(torch.float32)}), seen[1])
    with pytest.raises(SceneError, match=r"found torch\.bfloat16"):
        logits(model, {**batch, POINTS: cut.view(torch.float32).bfloat16()})
    vega3d.unpatch(model)
    assert not any(module._forward_pre_hooks for module in (model, getattr(model, "model", model)))


def test_pictures_and_views_of_different_number(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, row_of())
    with pytest.raises(HostError, match="has 3 views, and this call has 2 frames"):
        logits(patched(positions="sin3d"), {**batch, POINTS: batch[POINTS][[0, 1, 1]]})


def test_tiles_of_a_picture_are_no_views() -> None:
    """Two pictures that are cut into five each: not with two views, nor with ten."""
    model = hosts.patch(hosts.named("llava_next_video").build(), positions="sin3d")
    batch = llava_batch("llava_next_video", video=False)
    for views in (2, 10):
        points = vega3d.view_points(open_scene(f"room:0?views={views}&size=64x96"))
        with pytest.raises(HostError, match="cut a picture into tiles"):
            logits(model, {**batch, POINTS: points})


def test_views_are_repeated_for_repeated_pictures_alone(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, row_of())
    with pytest.raises(HostError, match="has 1 views, and this call has 2 frames"):
        logits(patched(positions="sin3d"), {**batch, POINTS: batch[POINTS][:1]})


@pytest.mark.once
def test_an_adapter_brings_the_branch_with_its_positions(tmp_path: Path) -> None:
    model = hosts.patch(QWEN.build(), positions="sin3d")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["vega3d"]))
    batch = batch_of(tmp_path, row_of())
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.5)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    base = vega3d.load_pretrained(QWEN.build(), tmp_path / "adapter")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(again, batch), expected)
    with pytest.raises(HostError, match="no vega3d_points"):
        logits(again, {key: value for key, value in batch.items() if key != POINTS})


@pytest.mark.once
def test_training_moves_the_branch_and_checkpoints_layers(tmp_path: Path) -> None:
    model = hosts.patch(QWEN.build(), positions="sin3d", init="released")
    freeze_host(model)
    batch = batch_of(tmp_path, row_of())
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in vega3d.get_handle(model).parameters()])
        model.zero_grad()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_saved_compared_and_refused(tmp_path: Path) -> None:
    model = patched(positions="sin3d")
    vega3d.save_pretrained(model, tmp_path)
    again = vega3d.load_pretrained(QWEN.build(), tmp_path)
    assert vega3d.get_handle(again).settings.positions == "sin3d"
    with pytest.raises(SavedBranchError, match=r"settings\.positions: saved 'sin3d', this model 'none'"):
        patched().load_state_dict(model.state_dict())
    policy = next(host for host in hosts.HOSTS if host.name == "openvla_double")
    with pytest.raises(HostError, match="positions='sin3d' needs pictures with depth"):
        hosts.patch(policy.build(), positions="sin3d")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (row_of(None, "<image>Where?") | {"image": "a.png"}, {}, "is no view of a `scene`"),
        (row_of("pictures"), {}, "lacks depth"),
    ],
    ids=["no scene", "no depth"],
)
def test_rows_without_depth_or_pose_are_refused(tmp_path: Path, row: Any, settings: Any, message: str) -> None:
    from rows.host import random_picture

    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "pictures/0.png", "pictures/1.png"):
        random_picture(64, 96).save(tmp_path / name)
    with pytest.raises(BadRowsError, match=message):
        data_of(tmp_path, row, **settings)


def test_scenes_without_metres_are_refused() -> None:
    with pytest.raises(SceneError, match="up to its scale only"):
        vega3d.view_points(replace(open_scene(ROOM), metric=False))
