"""VACE with a reference, done right: what the transformer is given, and what that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_wan import apart, close, frames
from support.toys.wan_vace import write

import vega3d
from vega3d_plugin.contracts.errors import PriorError, SettingsError
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise, noise_level
from vega3d_plugin.priors.wan.vace import WanVacePrior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vace")
    write(path)
    return path


def prior(folder: Path, **settings: Any) -> WanVacePrior:
    loaded = vega3d.load_prior("wan2.1-vace-1.3b", pretrained=folder, **{"size": (32, 48), "tap": 2, **settings})
    assert isinstance(loaded, WanVacePrior)
    return loaded


def test_the_reference_stands_before_the_frame_with_noise_of_its_own(folder: Path) -> None:
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    clip = frames(2, 32, 48)
    model = WanVACETransformer3DModel.from_pretrained(folder / "transformer").eval()
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    p = prior(folder)
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(v).view(shape) for v in (vae.config.latents_mean, vae.config.latents_std))

    @torch.no_grad()
    def latents(pixels: torch.Tensor) -> torch.Tensor:
        return (vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / std

    z, grey = latents(clip * 2 - 1), latents(torch.zeros_like(clip))[:1]
    level = noise_level(300, 5.0)
    noise = draw_noise(tuple(z.shape[1:2]) + tuple(z.shape[3:]), 0, range(-1, 2))
    prompt = torch.zeros(1, 512, 16)
    prompt[0, :1] = p.context
    expected = []
    for index in range(2):
        both = torch.cat([z[:1], z[index : index + 1]], dim=2)
        drawn = torch.stack([noise[0], noise[index + 1]], dim=1)[None]
        reference = torch.cat([z[:1], torch.zeros(1, 80, *z.shape[2:])], dim=1)
        frame = torch.cat([grey, z[index : index + 1], torch.ones(1, 64, *z.shape[2:])], dim=1)
        kept: list[torch.Tensor] = []
        # The hint is added behind the block: the next block's input has it.
        hook = model.blocks[3].register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
        with torch.no_grad():
            model(
                hidden_states=(1 - level.sigma) * both + level.sigma * drawn,
                timestep=torch.tensor([level.tau]),
                encoder_hidden_states=prompt,
                control_hidden_states=torch.cat([reference, frame], dim=2),
            )
        hook.remove()
        expected.append(kept[0][0, 6:].T.unflatten(1, (2, 3)))
    close(p(clip), torch.stack(expected))


def test_the_first_frame_matters_to_all_with_a_reference_and_to_none_without(folder: Path) -> None:
    clip = frames(3)
    other = clip.clone()
    other[0] = 1 - other[0]
    for reference, matters in (("first", True), ("none", False)):
        p = prior(folder, reference=reference)
        assert (apart(p(other)[1:], p(clip)[1:]) > 1e-3) == matters


def test_references_are_three_different_things(folder: Path) -> None:
    features = [prior(folder, reference=r)(frames(2)) for r in ("first", "none", "released")]
    assert min(apart(features[i], features[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2
    prints = {prior(folder, reference=r).fingerprint for r in ("first", "none", "released")}
    assert len(prints) == 3


def test_the_default_is_the_right_thing(folder: Path) -> None:
    assert prior(folder).vace.reference == "first"
    assert prior(folder).settings.options == {"reference": "first", "context_scale": 1.0}


def test_hints_are_weighed(folder: Path) -> None:
    clip = frames(1)
    assert apart(prior(folder, context_scale=0.0)(clip), prior(folder)(clip)) > 1e-3


def test_a_hint_behind_the_tap_is_not_held(folder: Path) -> None:
    assert [len(prior(folder, tap=tap).transformer.vace_blocks) for tap in (0, 1, 2, 3)] == [1, 1, 2, 2]


def test_wrong_options(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"(?s)the options of prior 'wan2\.1-vace-1\.3b'.*reference.*'last'"):
        prior(folder, reference="last")
    with pytest.raises(SettingsError, match=r"refrence: unknown key\. Did you mean 'reference'"):
        prior(folder, refrence="first")
    with pytest.raises(PriorError, match=r"no meaning in context 'views'\. Use context='frame'"):
        prior(folder, reference="released", context="views")


def test_presets(folder: Path) -> None:
    assert prior(folder, preset="released").vace.reference == "released"
    # What is given beside it overrules it.
    assert prior(folder, preset="released", reference="none").vace.reference == "none"
    with pytest.raises(SettingsError, match=r"no preset 'relased'\. Did you mean 'released'"):
        prior(folder, preset="relased")
