"""Two processes (gloo): DDP with a rank that has no image, and FSDP2."""

from __future__ import annotations

import json
from pathlib import Path

import hosts
import pytest
import torch
import torch.distributed as dist
from hosts import Host, freeze_host, patch
from processes import spawn, start
from torch import Tensor, nn

import vega3d
from vega3d_plugin.training.data import read_data
from vega3d_qwen_vl.tiny import tiny_processor

# One host for each kind of seam.
pytestmark = pytest.mark.once
DDP = [
    host.name
    for host in hosts.HOSTS
    if host.name in ("qwen2_5_vl", "llava_double", "openvla_double", "llava_onevision")
]
#: A run of one of them, whose branch adds positions.
POSITIONS = "positions"


def worker(rank: int, folder: str) -> None:
    """All tests' runs, one after the other: to start two processes takes longer than most of them."""
    start(rank, folder)
    for name in DDP:
        ddp(rank, f"{folder}/{name}", hosts.named(name))
    ddp(rank, f"{folder}/{POSITIONS}", hosts.named("qwen2_5_vl"), positions="sin3d")
    fsdp(rank, folder, hosts.named("qwen2_5_vl"))
    dist.destroy_process_group()


def branch_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in vega3d.get_handle(model).parameters()])


def scene_batch(folder: Path) -> dict[str, Tensor]:
    """A row that names a scene, with its world points."""
    said = [{"from": "human", "value": "<video>Where?"}, {"from": "gpt", "value": "Here."}]
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text(json.dumps([{"scene": "room:0?views=2&size=64x96", "conversations": said}]))
    processor = tiny_processor("qwen2_5_vl")
    data = read_data(processor, folder / "rows.json", frames=2, video_as="images", points=True)
    return {key: value for key, value in data.collator([data[0]]).items() if key != "labels"}


def ddp(rank: int, folder: str, host: Host, positions: str = "none") -> None:
    model = patch(host.build(), positions=positions)
    freeze_host(model)
    before = branch_of(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model.train())
    optimiser = torch.optim.SGD(vega3d.get_handle(wrapped).parameters(), lr=0.1)
    # Rank 1 never sees an image: without a term that touches the branch, DDP would wait for it until the timeout.
    # The rank without images has no points either.
    seen = host.batch() if positions == "none" else scene_batch(Path(folder, str(rank)))
    batches = [seen, host.text_batch()]
    for step in range(2):
        batch = batches[rank] if step == 0 else batches[0]
        wrapped(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    Path(folder).mkdir(exist_ok=True)
    torch.save((before, branch_of(wrapped)), f"{folder}/{rank}.pt")


def fsdp(rank: int, folder: str, host: Host) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = patch(host.build(), init="released")
    freeze_host(model)
    batch = host.batch()
    model.train()
    expected = model(**batch, labels=batch["input_ids"]).loss.detach()
    fully_shard(vega3d.get_handle(model).branch)
    loss = model(**batch, labels=batch["input_ids"]).loss
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    torch.optim.SGD(vega3d.get_handle(model).parameters(), lr=0.1).step()
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    vega3d.save_pretrained(model, f"{folder}/saved-{rank}")
    if rank == 0:
        torch.save({k.partition(".vega3d.")[2]: v for k, v in full.items() if ".vega3d." in k}, f"{folder}/full.pt")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    spawn(worker, folder)
    return folder


@pytest.mark.parametrize("name", [*DDP, POSITIONS])
def test_ddp_with_a_rank_without_images(done: Path, name: str) -> None:
    (before, first), (_, second) = (torch.load(done / name / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, before)


def test_fsdp2_trains_and_saves_the_branch(done: Path) -> None:
    from safetensors.torch import load_file

    saved, full = load_file(done / "saved-0" / "vega3d.safetensors"), torch.load(done / "full.pt")
    assert set(full) == {*saved, "record"}
    for name, tensor in saved.items():
        torch.testing.assert_close(full[name], tensor)
