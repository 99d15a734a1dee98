"""vLLM as a host: on a double of the parts that the adapter touches, and on vLLM itself where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.harnesses import interpreter
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.errors import HostError, SavedBranchError, SettingsError
from vega3d_plugin.evaluation.harness_host import HostArguments
from vega3d_plugin.evaluation.serving.export import export_embeddings
from vega3d_plugin.evaluation.serving.tokens import fused_tokens
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.answers import encode_question
from vega3d_plugin.training.rows.conversation import Medium, Turn
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_qwen_vl.tiny import available_families, tiny_model, tiny_processor
from vega3d_vllm.adapter import VllmQwenAdapter
from vega3d_vllm.serving import put_on

FAMILIES = [family for family in ("qwen2_5_vl", "qwen3_vl") if family in available_families()]


class Tower(nn.Module):
    """Gives what vLLM's towers give: the tokens, and beside each its deepstack features."""

    def __init__(self, tower: Any, as_list: bool) -> None:
        super().__init__()
        self.tower, self.as_list = tower, as_list

    def forward(self, x: Tensor, grid_thw: Any) -> Tensor:
        assert isinstance(grid_thw, list) == self.as_list
        out = self.tower(x, grid_thw=torch.as_tensor(grid_thw))
        if isinstance(out, Tensor):
            return out
        tokens, deeper = (out[0], out[1]) if isinstance(out, tuple) else (out.pooler_output, None)
        deeper = getattr(out, "deepstack_features", None) if deeper is None else deeper
        return torch.cat([tokens, *(deeper or [])], dim=-1)


class Served(nn.Module):
    """The parts of vLLM 0.32's models that the adapter touches."""

    def __init__(self, family: str, branch: Path, **more: Any) -> None:
        super().__init__()
        host = tiny_model(family)
        tower = host.model.visual if hasattr(host.model, "visual") else host.visual
        self.config, self.visual = host.config, Tower(tower, as_list=family == "qwen2_5_vl")
        self.config.vega3d = {"branch": str(branch), **more}
        self.merge = 2 * 2

    def _encode(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        grids = grid.tolist() if self.visual.as_list else grid
        return self.visual(pixels, grid_thw=grids).split((grid.prod(-1) // self.merge).tolist())

    def _process_image_input(self, image_input: dict[str, Any]) -> tuple[Tensor, ...]:
        if image_input["type"] == "image_embeds":
            return (image_input["image_embeds"],)
        return self._encode(image_input["pixel_values"], image_input["image_grid_thw"])

    def _process_video_input(self, video_input: dict[str, Any]) -> tuple[Tensor, ...]:
        return self._encode(video_input["pixel_values_videos"], video_input["video_grid_thw"])


def saved(family: str, folder: Path, hidden_size: int = 64, **settings: Any) -> tuple[Any, Any]:
    """A patched host of transformers with its processor; writes the processor in ``host``, and ``branch``."""
    model, processor = tiny_model(family, hidden_size=hidden_size), tiny_processor(family)
    processor.save_pretrained(folder / "host")
    torch.manual_seed(0)
    vega3d.patch(model, "tiny-wan", processor=processor, **settings)
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(5.0)
    vega3d.save_pretrained(model, folder / "branch")
    return model, processor


def config(host: Path, **pictures: Any) -> Any:
    """The parts of vLLM's configuration that are looked at."""
    model = SimpleNamespace(model=str(host), multimodal_config=SimpleNamespace(**pictures))
    return SimpleNamespace(model_config=model, compilation_config=SimpleNamespace())


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 112, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_tower_gives_the_tokens_of_the_patched_host(family: str, tmp_path: Path) -> None:
    host, processor = saved(family, tmp_path)
    served = Served(family, tmp_path / "branch").eval()
    names = put_on(served, config(tmp_path / "host"))
    assert names
    assert all(name.startswith("visual.vega3d.") for name in names)
    # A video that stands still is a video all the same.
    parts = (Medium("image", picture(0)), Medium("image", picture(1)), Medium("video", [picture(2)] * 2), "Where?")
    inputs = encode_question(
        Encoder(processor, DataSettings.parse({"files": ("-",), "frames": 2})), [Turn("user", parts)]
    )
    wanted = fused_tokens(host, inputs).embeds
    with torch.inference_mode():
        images = served._process_image_input(
            {"type": "pixel_values", **{key: inputs[key] for key in ("pixel_values", "image_grid_thw")}}
        )
        videos = served._process_video_input(
            {"type": "pixel_values_videos", **{key: inputs[key] for key in ("pixel_values_videos", "video_grid_thw")}}
        )
        given = served._process_image_input({"type": "image_embeds", "image_embeds": wanted["image"]})
    assert torch.equal(torch.cat(images), wanted["image"])
    assert torch.equal(torch.cat(videos), wanted["video"])
    assert torch.equal(given[0], wanted["image"])
    # Grey levels, which vLLM's towers normalise by themselves.
    seam = vega3d.get_handle(served).seam
    rows, grid = inputs["pixel_values"], tuple(inputs["image_grid_thw"][0].tolist())
    rows = rows[: grid[0] * grid[1] * grid[2]]
    normalised = seam.reader._clip(rows, grid, False)  # type: ignore[attr-defined]
    std, mean = (
        torch.as_tensor(values).repeat_interleave(rows.shape[1] // 3)
        for values in (seam.statistics.std, seam.statistics.mean)
    )
    grey = (255 * (rows * std + mean)).round().to(torch.uint8)
    assert torch.equal(seam.reader._clip(grey, grid, False).frames, normalised.frames)  # type: ignore[attr-defined]
    vega3d.unpatch(host)
    assert not torch.equal(fused_tokens(host, inputs).embeds["image"], wanted["image"])


def test_what_cannot_be_served_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("qwen2_5_vl", tmp_path, images="scene", context="views")
    served, source = Served("qwen2_5_vl", tmp_path / "branch"), config(tmp_path / "host")
    with pytest.raises(HostError, match="several requests together"):
        put_on(served, source)
    assert not vega3d.is_patched(served)
    saved("qwen2_5_vl", tmp_path / "places", positions="sin3d")
    with pytest.raises(HostError, match=r"adds positions \('sin3d'\)"):
        put_on(Served("qwen2_5_vl", tmp_path / "places" / "branch"), config(tmp_path / "places" / "host"))
    with pytest.raises(HostError, match="cannot be served with --mm-encoder-tp-mode data"):
        put_on(served, config(tmp_path / "host", mm_encoder_tp_mode="data"))
    served.config.vega3d = {"brunch": "there"}
    with pytest.raises(SettingsError, match="branch"):
        put_on(served, source)
    del served.config.vega3d
    with pytest.raises(HostError, match="nobody has said which"):
        put_on(served, source)
    # The branch of another host does not fit.
    monkeypatch.setattr(VllmQwenAdapter, "takes_branches_of", "openvla")
    with pytest.raises(SavedBranchError, match="for host 'qwen_vl', this model has 'openvla'"):
        put_on(Served("qwen2_5_vl", tmp_path / "branch"), source)


def test_importing_the_adapter_imports_no_vllm() -> None:
    code = "import sys, vega3d_vllm; vega3d_vllm.plugin; print('vllm' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["False", "False"]


SERVE = Path(__file__).parent / "serve_with_vllm.py"

if interpreter("vllm") is not None:

    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    def test_vllm_itself(family: str, tmp_path: Path) -> None:
        """Served by vLLM from pixels with the branch, and given the fused tokens, a prompt is continued alike."""
        # Heads of 64, the smallest that vLLM has kernels for on a CPU.
        tiny_model(family, hidden_size=256).save_pretrained(tmp_path / "host")
        saved(family, tmp_path, hidden_size=256)
        picture(0).save(tmp_path / "0.png")
        turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "4"}]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", "conversations": turns}))
        for out, branch in (("fused", str(tmp_path / "branch")), ("bare", "none")):
            given = {"pretrained": str(tmp_path / "host"), "branch": branch, "device": "cpu"}
            export_embeddings(HostArguments.parse(given), [tmp_path / "rows.jsonl"], tmp_path / out)
        name = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
        done = subprocess.run(
            [str(interpreter("vllm")), str(SERVE), str(tmp_path), f"Vega3d{name}ForConditionalGeneration"],
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["branch_to_tokens"] < 1e-4 < found["branch_to_bare"]
