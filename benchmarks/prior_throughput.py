"""How fast the Wan prior is: the plain way against the fast path, on the same random weights and frames, in one run.

Plain is diffusers' own forward of the same sequence: float32 weights, the VAE with its 3D convolutions, all blocks of
the transformer with a forward hook on the tapped one, the prompt padded to 512 tokens (on CUDA under bfloat16
autocast); in context `frame` it goes frame by frame. Released is the released code's own classes, on all frames of a
clip as one batch, as its encoder has it: weights of its own, so there is no error beside it, and torch's attention,
since flash attention needs CUDA. Fast is `vega3d.load_prior`'s default. The geometry is Wan 2.1 1.3B's; with fewer
blocks the tap keeps its place, 21 of 30. The ratio is to plain, in the last column to released.

    python benchmarks/prior_throughput.py                              # 2 CPU cores, about 8 minutes
    python benchmarks/prior_throughput.py --blocks 30 --frames 2 --size 480x832
    python benchmarks/prior_throughput.py --device cuda --blocks 30    # bfloat16, and once more with torch.compile
    python benchmarks/prior_throughput.py --context views --frames 8   # or video: attended jointly
    python benchmarks/prior_throughput.py --bfloat16                   # another side, with its error
    python benchmarks/prior_throughput.py --released VEGA-3D           # a checkout of its branch main
    python benchmarks/prior_throughput.py --memory --blocks 30         # peak of 8 frames in bfloat16, nothing else
    python benchmarks/prior_throughput.py --frames 1 --size 96x160     # a quick look; as `make bench ARGS="..."`
"""

from __future__ import annotations

import gc
import math
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from released_wan import ReleasedWan
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.fast.linears import ConvolvedLinear
from vega3d_plugin.priors.wan.prior import TEXT_LENGTH, WanPrior

TAPPED = 21 / 30
STAGES = ("VAE", "transformer")


@dataclass
class Run:
    """Seconds, peak memory in bytes and result of one stage."""

    seconds: float
    peak: float
    out: Tensor


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Clip lengths.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="Height x width in pixels.")] = None,
    blocks: Annotated[int, typer.Option(help="Blocks of the transformer; 30 is Wan 1.3B.")] = 10,
    repeats: Annotated[int, typer.Option(help="Runs of each side; the best counts.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    context: Annotated[str, typer.Option(help="frame, views or video.")] = "frame",
    bfloat16: Annotated[bool, typer.Option(help="The fast path in bfloat16, too; on CUDA it is so anyway.")] = False,
    released: Annotated[Path | None, typer.Option(help="A checkout of VEGA-3D, branch main; context frame.")] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Only the peak memory in bfloat16, of the largest clip asked for.")
    ] = False,
) -> None:
    """Measure features, stage by stage."""
    if released is not None and context != "frame":
        raise typer.BadParameter("The released code has no other context than frame.")
    where = torch.device(device)
    machine = torch.cuda.get_device_name() if where.type == "cuda" else _cpu()
    out = Console(width=130)
    counts, sizes = frames or [2, 8], [_side(text) for text in size or ["240x416", "480x832"]]
    threads = torch.get_num_threads()
    out.print(f"{machine}, {threads} threads, torch {torch.__version__}, {blocks} blocks, tap at 70 %, {context}")
    if memory:
        count, (height, width) = max(counts), max(sizes, key=math.prod)
        peak = _bfloat16_peak(where, blocks, count, (height, width))
        out.print(
            f"peak of {count} frames, {height}x{width}, bfloat16, {_tapped(blocks)} blocks: {peak / 2**30:.1f} GiB"
        )
        return
    rate = _matrix_rate(where)
    out.print(f"measured matrix rate: {rate / 1e9:.0f} GFLOP/s\n")
    plain_models = _models(blocks, where)
    sides: dict[str, WanPrior] = {"fast": _prior(_models(blocks, where), blocks, context=context)}
    if bfloat16:
        sides["fast, bfloat16"] = _prior(_models(blocks, where), blocks, context=context, dtype="bfloat16")
        for model in sides["fast, bfloat16"].models.values():
            model.to(torch.bfloat16)
    theirs = None if released is None else ReleasedWan(released, blocks, _tapped(blocks) - 1)
    if where.type == "cuda":
        sides["fast, compiled"] = _prior(_models(blocks, where), blocks, context=context, compile=True)
    table = Table(title="plain: diffusers' forward with a hook; fast: vega3d")
    for column in (
        "frames",
        "size",
        "stage",
        "side",
        "s",
        "frames/s",
        "ratio",
        "error",
        "peak GiB",
        "of matrix rate",
        "to released",
    ):
        table.add_column(column, justify="right" if column not in ("stage", "side") else "left")
    # To the terminal, so that the table alone goes into a file.
    say = Console(stderr=True, style="dim")
    for count in counts:
        for height, width in sizes:
            side = f"{height}x{width}"
            say.print(f"{count} frames of {side}: plain ...")
            clip = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)).to(where)
            plain = _best(lambda clip=clip: _plain(plain_models, clip, blocks, where, context), repeats)
            base = None
            if theirs is not None:
                base = _best(lambda clip=clip: _released(theirs, clip, where), repeats)
                _rows(table, count, side, "released", base, plain, rate, {})
            sides["fast"].size = (height, width)
            work = _work(plain_models, sides["fast"], clip, blocks, context, where)
            _rows(table, count, side, "plain", plain, plain, rate, work["plain"], base)
            for name, prior in sides.items():
                say.print(f"{count} frames of {side}: {name} ...")
                prior.size = (height, width)
                fast = _best(lambda prior=prior, clip=clip: _fast(prior, clip, where), repeats, warm="compiled" in name)
                _rows(table, count, side, name, fast, plain, rate, work["fast"], base)
    out.print()
    out.print(table)
    if where.type == "cpu":
        height, width = max(sizes, key=math.prod)
        asked = ["--frames", str(max(counts)), "--size", f"{height}x{width}", "--blocks", str(blocks)]
        command = [sys.executable, __file__, "--memory", "--device", device, *asked]
        say.print(f"{max(counts)} frames of {height}x{width}: peak memory in bfloat16 ...")
        # In a process of its own: a process's peak never goes down.
        out.print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _side(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdecimal() and width.isdecimal()) or int(height) % 16 or int(width) % 16:
        raise typer.BadParameter(f"{text}: expected HEIGHTxWIDTH in multiples of 16, such as 480x832.")
    return int(height), int(width)


def _tapped(blocks: int) -> int:
    return max(1, round(blocks * TAPPED))


def _models(blocks: int, where: torch.device) -> tuple[Any, Any, Tensor]:
    """Transformer, VAE without decoder, empty prompt: equal on every call."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    with where:
        shape = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "text_dim": 4096}
        transformer = WanTransformer3DModel(num_layers=blocks, **shape)
        vae = AutoencoderKLWan()
    vae.decoder = None
    context = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
    return transformer.eval().requires_grad_(False), vae.eval().requires_grad_(False), context.to(where)


def _prior(models: tuple[Any, Any, Tensor], blocks: int, **settings: Any) -> WanPrior:
    transformer, vae, context = models
    transformer.blocks = transformer.blocks[: _tapped(blocks)]
    return WanPrior(transformer, vae, context, PriorSettings(tap=_tapped(blocks) - 1, size=(480, 832), **settings))


def _plain(
    models: tuple[Any, Any, Tensor], clip: Tensor, blocks: int, where: torch.device, context: str
) -> dict[str, Run]:
    transformer, vae, prompt = models
    mean, std = (torch.tensor(v, device=where) for v in (vae.config.latents_mean, vae.config.latents_std))
    padded = torch.zeros(1, TEXT_LENGTH, prompt.shape[1], device=where)
    padded[0, : len(prompt)] = prompt
    sigma, tau = 0.2999238, torch.tensor([299], device=where)
    half = torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda")

    def encode() -> Tensor:
        if context == "video":
            frames = torch.cat([clip, clip[-1:].expand(-(len(clip) - 1) % 4, -1, -1, -1)])
            latents = vae.encode(frames.movedim(0, 1)[None] * 2 - 1).latent_dist.mode()[0].movedim(1, 0)
        else:
            latents = torch.cat([vae.encode(f[None, :, None] * 2 - 1).latent_dist.mode()[:, :, 0] for f in clip])
        return (latents.float() - mean[:, None, None]) / std[:, None, None]

    def transform(latents: Tensor) -> Tensor:
        noise = draw_noise(tuple(latents.shape[1:]), 0, range(len(latents))).to(where)
        noisy = (1 - sigma) * latents + sigma * noise
        kept: list[Tensor] = []
        hook = transformer.blocks[_tapped(blocks) - 1].register_forward_hook(lambda m, args, out: kept.append(out))
        # One sequence of all steps, or each frame alone.
        sequences = noisy[:, None] if context == "frame" else noisy[None]
        for sequence in sequences:
            transformer(sequence.movedim(0, 1)[None], tau, padded, return_dict=False)
        hook.remove()
        height, width = latents.shape[2] // 2, latents.shape[3] // 2
        return torch.cat([tokens[0].unflatten(0, (-1, height, width)) for tokens in kept]).movedim(-1, 1)

    with torch.no_grad(), half:
        first = _measured(encode, where)
        second = _measured(lambda: transform(first.out), where)
    return {"VAE": first, "transformer": second}


def _released(theirs: ReleasedWan, clip: Tensor, where: torch.device) -> dict[str, Run]:
    with torch.no_grad():
        first = _measured(lambda: theirs.encode(clip), where)
        second = _measured(lambda: theirs.transform(first.out), where)
    return {"VAE": first, "transformer": second}


def _fast(prior: WanPrior, clip: Tensor, where: torch.device) -> dict[str, Run]:
    with prior.session(where):
        first = _measured(lambda: prior.encode(clip), where)
        second = _measured(lambda: prior.features(first.out), where)
    return {"VAE": first, "transformer": second}


def _best(run: Callable[[], dict[str, Run]], repeats: int, warm: bool = False) -> dict[str, Run]:
    if warm:
        run()
    runs = [run() for _ in range(repeats)]
    return {stage: min((r[stage] for r in runs), key=lambda r: r.seconds) for stage in STAGES}


def _measured(work: Callable[[], Tensor], where: torch.device) -> Run:
    gc.collect()
    with _Peak(where) as peak:
        # Of one thread, processor time, which other jobs on the machine do not touch.
        now = time.process_time if where.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        start = now()
        out = work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        seconds = now() - start
    return Run(seconds, peak.bytes, out)


class _Peak:
    """Highest memory while it is open: of the process on a CPU, sampled; of the allocator on CUDA."""

    def __init__(self, where: torch.device) -> None:
        self.where, self.bytes, self._stop = where, 0.0, threading.Event()

    def __enter__(self) -> _Peak:
        if self.where.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.where.type == "cuda":
            self.bytes = float(torch.cuda.max_memory_allocated())
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        statm = Path("/proc/self/statm")
        while statm.exists():
            self.bytes = max(self.bytes, int(statm.read_text().split()[1]) * resource.getpagesize())
            if self._stop.wait(0.01):
                return


def _work(
    plain: tuple[Any, Any, Tensor], fast: WanPrior, clip: Tensor, blocks: int, context: str, where: torch.device
) -> dict[str, dict[str, float]]:
    """FLOP of the matrix products, convolutions and attentions of both stages, from the shapes alone."""
    found: dict[str, dict[str, float]] = {"plain": {}, "fast": {}}
    steps = 1 + -(-(len(clip) - 1) // 4) if context == "video" else len(clip)
    height, width = (side // fast.stride for side in clip.shape[2:])
    length = height * width * (1 if context == "frame" else steps)
    dim, inner, times = fast.feature_dim, 8960, steps if context == "frame" else 1

    def transformer(count: int, linears: list[tuple[int, int]], prompt: bool) -> float:
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            for rows, columns in linears:
                torch.nn.functional.linear(torch.empty(length, columns), torch.empty(rows, columns))
            heads, text = torch.empty(1, 12, length, 128), torch.empty(1, 12, TEXT_LENGTH, 128)
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            if prompt:
                torch.nn.functional.scaled_dot_product_attention(heads, text, text)
        return float(counter.get_total_flops()) * count * times

    # Query, key and value in one; output; query of the cross-attention; the two of the feed-forward.
    least = [(3 * dim, dim), (dim, dim), (dim, dim), (inner, dim), (dim, inner)]
    found["fast"]["transformer"] = transformer(_tapped(blocks), least, prompt=False)
    found["plain"]["transformer"] = transformer(blocks, [*least, (dim, dim)], prompt=True)
    # Of the VAE by its area, from small frames: the attention in its middle, 3% at 480x832, is left out so.
    small = (64, 96)
    area = clip.shape[2] * clip.shape[3] / (small[0] * small[1])
    with fast.session(where), torch.no_grad():
        for name, vae in (("plain", plain[1]), ("fast", fast.models["vae"])):
            pixels = torch.zeros(1, 3, 4 * steps - 3 if context == "video" else 1, *small, device=where)
            with FlopCounterMode(display=False) as counter:
                vae.encode(pixels.to(next(vae.parameters()).dtype))
            found[name]["VAE"] = float(counter.get_total_flops()) * area * (1 if context == "video" else len(clip))
    return found


def _rows(
    table: Table,
    count: int,
    size: str,
    side: str,
    runs: dict[str, Run],
    plain: dict[str, Run],
    rate: float,
    work: dict[str, float],
    released: dict[str, Run] | None = None,
) -> None:
    def seconds(of: dict[str, Run], stage: str) -> float:
        return sum(run.seconds for run in of.values()) if stage == "both" else of[stage].seconds

    for stage in (*STAGES, "both"):
        own = seconds(runs, stage)
        error = peak = share = ""
        if stage != "both":
            peak = f"{runs[stage].peak / 2**30:.1f}"
            if side not in ("plain", "released"):
                error = f"{_error(runs[stage].out, plain[stage].out):.1e}"
        flop = sum(work.values()) if stage == "both" else work.get(stage, 0)
        share = f"{flop / own / rate:.0%}" if flop else ""
        ratio = "" if side == "plain" else f"{seconds(plain, stage) / own:.2f}"
        theirs = "" if released is None else f"{seconds(released, stage) / own:.2f}"
        table.add_row(
            str(count), size, stage, side, f"{own:.2f}", f"{count / own:.3f}", ratio, error, peak, share, theirs
        )


def _error(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max())


def _matrix_rate(where: torch.device) -> float:
    """FLOP/s of one large matrix product in the dtype of the fast path, by the faster of torch's two kernels."""
    side, dtype = (8192, torch.bfloat16) if where.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))
    linear = torch.nn.Linear(side, side, bias=False, device=where, dtype=dtype).requires_grad_(False)
    ways = [lambda: a @ b, lambda: ConvolvedLinear(linear)(a)]
    seconds = [_measured(way, where).seconds for way in ways for _ in range(5)]
    return 2 * side**3 / min(seconds)


def _bfloat16_peak(where: torch.device, blocks: int, frames: int, size: tuple[int, int]) -> float:
    prior = _prior(_models(blocks, where), blocks, dtype="bfloat16")
    prior.size = size
    for model in prior.models.values():
        model.to(torch.bfloat16)
    clip = torch.rand(frames, 3, *size, device=where)
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        prior(clip)
        return float(torch.cuda.max_memory_allocated())
    gc.collect()
    with _Peak(where) as peak:
        prior(clip)
    return peak.bytes


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(main)
