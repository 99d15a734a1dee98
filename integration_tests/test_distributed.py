"""Two processes (gloo): DDP with a rank that has no image, and FSDP2."""

from __future__ import annotations

import os
from pathlib import Path

import hosts
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import vega3d

TIMEOUT = 60
# One host for each kind of seam.
DDP = ("qwen2_5_vl", "llava_double", "openvla_double", "llava_onevision")


def start(rank: int, folder: str) -> None:
    os.environ["VEGA3D_CACHE"] = folder
    torch.set_num_threads(1)
    from datetime import timedelta

    init = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT))


def ddp_worker(rank: int, folder: str, name: str) -> None:
    start(rank, folder)
    from hosts import PROJECTOR, named

    host = named(name)
    torch.manual_seed(0)
    model = vega3d.patch(host.build(), "tiny-wan", projector=PROJECTOR)
    model.requires_grad_(False)
    vega3d.get_handle(model).unfreeze()
    wrapped = torch.nn.parallel.DistributedDataParallel(model.train())
    optimiser = torch.optim.SGD(vega3d.get_handle(wrapped).parameters(), lr=0.1)
    # Rank 1 never sees an image: without a term that touches the branch, DDP would wait for it until the timeout.
    batches = [host.batch(), host.text_batch()]
    for step in range(2):
        batch = batches[rank] if step == 0 else batches[0]
        wrapped(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    state = torch.cat([p.detach().flatten() for p in vega3d.get_handle(wrapped).parameters()])
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def fsdp_worker(rank: int, folder: str) -> None:
    start(rank, folder)
    from hosts import PROJECTOR, freeze_host, named
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    host = named("qwen2_5_vl")
    torch.manual_seed(0)
    model = vega3d.patch(host.build(), "tiny-wan", projector=PROJECTOR, init="released")
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
    dist.destroy_process_group()


def run(worker, folder: Path, *given: str) -> None:
    mp.spawn(worker, args=(str(folder), *given), nprocs=2, join=True)


@pytest.fixture(autouse=True)
def _children_find_our_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent / "tests")]))


@pytest.mark.parametrize("name", [host.name for host in hosts.HOSTS if host.name in DDP])
def test_ddp_with_a_rank_without_images(tmp_path: Path, name: str) -> None:
    run(ddp_worker, tmp_path, name)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)


def test_fsdp2_trains_and_saves_the_branch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run(fsdp_worker, tmp_path)
    saved, full = load_file(tmp_path / "saved-0" / "vega3d.safetensors"), torch.load(tmp_path / "full.pt")
    assert set(full) == {*saved, "record"}
    for name, tensor in saved.items():
        torch.testing.assert_close(full[name], tensor)
