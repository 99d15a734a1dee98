"""Every reduction of the fast path gives what the plain path gives, alone and together, and is really in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small_wan import frames
from support.toys import wan, wan22, wan_vace
from support.toys.base import Toy
from torch import Tensor, nn

from vega3d_plugin.contracts.errors import PriorError
from vega3d_plugin.priors.fast import chosen
from vega3d_plugin.priors.fast.linears import ConvolvedLinear
from vega3d_plugin.priors.fast.modulation import FoldedBlock
from vega3d_plugin.priors.fast.prompt import PromptAttention
from vega3d_plugin.priors.fast.self_attention import FusedSelfAttention, rotate
from vega3d_plugin.priors.fast.single_frame_vae import SingleFrameConv, SinglePassNorm
from vega3d_plugin.priors.fast.video_vae import joined_chunks
from vega3d_plugin.priors.fast.winograd import WINOGRAD_VAE, WinogradConv, convolved
from vega3d_plugin.priors.wan.prior import WanPrior

EXACT = 1e-4
TOYS = {"wan2.1": wan.TOYS[0], "vace": wan_vace.TOYS[1], "wan2.2": wan22.TOYS[0]}
NAMES = [reduction.name for reduction in WanPrior.reductions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def written(name: str) -> Path:
        path = tmp_path_factory.mktemp("toy")
        TOYS[name].write(path)
        return path

    return written


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def load(toy: Toy, folder: Path, **settings: Any) -> WanPrior:
    prior = toy.load(folder, **settings)
    assert isinstance(prior, WanPrior)
    return prior


@pytest.mark.parametrize("reduction", NAMES)
@pytest.mark.parametrize("name", TOYS)
def test_each_reduction_alone(name: str, reduction: str, folder: Callable[[str], Path]) -> None:
    toy = TOYS[name]
    # What it needs to do anything comes with it.
    needs = {"folded_prompt_output": ["collapsed_prompt"], "single_pass_norms": ["single_frame_vae"]}
    fast = [*needs.get(reduction, []), reduction]
    for settings in ({"tap": 0}, {"tap": -1, "context": "views"}, {"tap": 1, "context": "video"}):
        for clip in (frames(2), frames(5, 37, 61)):
            plain = load(toy, folder(name), fast=False, **settings)(clip)
            assert error(load(toy, folder(name), fast=fast, **settings)(clip), plain) < EXACT, settings


@pytest.mark.parametrize("tokens", [1, 2, 7, 40, 511, 512])
@pytest.mark.parametrize("name", TOYS)
def test_prompts_of_any_length(name: str, tokens: int, folder: Callable[[str], Path]) -> None:
    context = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens))
    features = []
    for fast in (True, False):
        prior = load(TOYS[name], folder(name), fast=fast)
        prior(frames(1))
        prior.context = context
        features.append(prior(frames(2)))
    assert error(features[0], features[1]) < EXACT


def test_the_prompt_matters(folder: Callable[[str], Path]) -> None:
    prior = load(TOYS["wan2.1"], folder("wan2.1"))
    before = prior(frames(1))
    prior.context = prior.context + 1
    assert error(prior(frames(1)), before) > 1e-3


def kinds(prior: WanPrior) -> set[str]:
    found = {type(module).__name__ for model in prior.models.values() for module in model.modules()}
    return found | {type(attn.processor).__name__ for b in prior.blocks() for attn in (b.attn1, b.attn2)}


SIGNS = {
    "convolved_linears": "ConvolvedLinear",
    "single_frame_vae": "SingleFrameConv",
    "single_pass_norms": "SinglePassNorm",
    "fused_qkv": "FusedSelfAttention",
    "collapsed_prompt": "PromptAttention",
    "folded_modulation": "FoldedBlock",
}


@pytest.mark.parametrize("name", TOYS)
def test_on_means_in_place_and_off_means_diffusers_own(name: str, folder: Callable[[str], Path]) -> None:
    plain, fast = (load(TOYS[name], folder(name), fast=fast) for fast in (False, True))
    for prior in (plain, fast):
        prior(frames(1))
    assert not kinds(plain) & set(SIGNS.values())
    assert set(SIGNS.values()) <= kinds(fast)
    assert {"WanAttnProcessor"} & kinds(plain)
    for reduction, sign in SIGNS.items():
        alone = load(TOYS[name], folder(name), fast=[reduction])
        alone(frames(1))
        assert kinds(alone) & set(SIGNS.values()) == {sign}
    # Every block, every norm, every convolution: none is forgotten.
    left = kinds(fast) & {"WanTransformerBlock", "WanVACETransformerBlock", "WanAttnProcessor", "Linear"}
    assert not left
    encoder = fast.vae.encoder
    assert not any(type(m).__name__ in ("WanCausalConv3d", "WanRMS_norm") for m in encoder.modules())
    for block in fast.blocks():
        assert block.attn2.processor.tables is not None
        assert block.attn2.processor.keys.shape[0] == 2


def test_the_signs_cover_the_reductions() -> None:
    # These show in no class here: the toys' convolutions are too small, and a longer chunk has no module of its own.
    assert {*SIGNS, "folded_prompt_output", "winograd_vae", "joined_chunks"} == set(NAMES)


def test_parameters_keep_their_names(folder: Callable[[str], Path]) -> None:
    plain, fast = (load(TOYS["vace"], folder("vace"), fast=fast) for fast in (False, True))
    for prior in (plain, fast):
        prior(frames(1))
    for part in ("transformer", "vae"):
        names = [{n: tuple(p.shape) for n, p in prior.models[part].named_parameters()} for prior in (plain, fast)]
        assert names[0] == names[1]


def test_an_unknown_reduction(folder: Callable[[str], Path]) -> None:
    with pytest.raises(PriorError, match=r"no reduction 'fused_qvk'\. Did you mean 'fused_qkv'.*It has: convolved"):
        load(TOYS["wan2.1"], folder("wan2.1"), fast=["fused_qvk"])
    assert chosen((), True, "x") == []


def test_a_change_of_dtype_folds_again(folder: Callable[[str], Path]) -> None:
    prior = load(TOYS["wan2.1"], folder("wan2.1"))
    expected = prior(frames(1))
    for _ in range(2):
        prior._ready = None  # as a move to another device does
        assert error(prior(frames(1)), expected) < 1e-6


# The pieces


@pytest.mark.parametrize("shape", [(70, 12), (2, 35, 12), (1, 64, 12), (3, 12), (2, 3, 40, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_as_a_convolution(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 7, bias=bias)
    x = torch.randn(shape)
    for given in (x, x.transpose(0, -2), x.expand(2, *shape)):
        torch.testing.assert_close(ConvolvedLinear(linear)(given), linear(given), rtol=1e-5, atol=1e-5)
    assert ConvolvedLinear(linear).weight is linear.weight


@pytest.mark.parametrize("stride", [1, (1, 2, 2), (2, 1, 1)])
def test_a_causal_convolution_on_one_frame_and_on_more(stride: Any) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    torch.manual_seed(0)
    for kernel, padding in ((3, 1), (1, 0), ((3, 1, 1), (1, 0, 0))):
        conv = WanCausalConv3d(4, 6, kernel, stride=stride, padding=padding)
        single = SingleFrameConv(conv)
        for steps in (1, 4):
            x = torch.randn(2, 4, steps, 9, 11)
            torch.testing.assert_close(single(x), conv(x), rtol=1e-5, atol=1e-5)
        if padding and kernel == 3:
            x, cache = torch.randn(1, 4, 1, 9, 11), torch.randn(1, 4, 2, 9, 11)
            assert torch.equal(single(x, cache), conv(x, cache))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("cached", [None, 1, 2])
def test_winograds_convolution(steps: int, cached: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    # Several strips, whose edges are no edges of the picture.
    monkeypatch.setattr("vega3d_plugin.priors.fast.winograd._LARGEST_STRIP", 1)
    torch.manual_seed(0)
    conv = WanCausalConv3d(64, 65, 3, padding=1)
    x = torch.randn(1, 64, steps, 42, 23)
    cache = None if cached is None else torch.randn(1, 64, cached, 42, 23)
    expected = conv(x, cache)
    fast = WinogradConv(conv)
    fast._conv = [None]  # not by way of what it stands for
    found = fast(x, cache)
    assert error(found, expected) < 1e-5
    # As norms in one pass want it, also where tiles reach beyond the map.
    assert found.movedim(1, -1).is_contiguous()
    assert fast.weight is conv.weight


@torch.no_grad()
def test_where_winograds_convolution_is_the_one_it_stands_for() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    torch.manual_seed(0)
    conv = WanCausalConv3d(64, 64, 3, padding=1)
    fast = WinogradConv(SingleFrameConv(conv))
    assert error(fast(torch.ones(3, 64, 1, 16, 20)), conv(torch.ones(3, 64, 1, 16, 20))) < 1e-5
    for x in (torch.randn(2, 64, 2, 16, 16), torch.randn(1, 64, 2, 8, 16), torch.randn(1, 64, 4, 16, 16).double()):
        same = conv if x.dtype == torch.float32 else conv.double()
        assert torch.equal(fast(x), same(x))
    with torch.enable_grad():
        x = torch.randn(1, 64, 1, 16, 16, requires_grad=True)
        conv.float().requires_grad_(False)
        torch.testing.assert_close(
            torch.autograd.grad(fast(x).sum(), x), torch.autograd.grad(conv(x).sum(), x), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("chunk", [4, 8, 16])
def test_a_video_in_longer_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    sizes = {"base_dim": 64, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "attn_scales": []}
    vae = AutoencoderKLWan(**sizes, temperal_downsample=[True, True]).eval()
    video = torch.rand(1, 3, 17, 64, 72)
    expected = vae.encode(video).latent_dist.mode()
    monkeypatch.setattr("vega3d_plugin.priors.fast.video_vae._PIXELS", chunk * 64 * 72)
    WINOGRAD_VAE.apply(SimpleNamespace(models={"vae": vae}))
    used: list[int] = []
    monkeypatch.setattr(
        "vega3d_plugin.priors.fast.winograd.convolved", lambda *a: (used.append(a[-1]), convolved(*a))[1]
    )
    found = vae.quant_conv(joined_chunks(vae.encoder, video, 4)).chunk(2, dim=1)[0]
    assert error(found, expected) < 1e-5
    assert max(used) == chunk


@torch.no_grad()
def test_one_pass_of_normalisation() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    torch.manual_seed(0)
    norm = WanRMS_norm(5, images=False)
    norm.gamma.data = torch.randn_like(norm.gamma)
    x = torch.randn(2, 5, 1, 300, 400).contiguous(memory_format=torch.channels_last_3d)
    x[0, :, 0, 0, 0] = 0
    x[0, :, 0, 0, 1] = 1e-20
    for given in (x, x.contiguous(), x.bfloat16()):
        torch.testing.assert_close(SinglePassNorm(norm)(given), norm(given), rtol=1e-5, atol=1e-5)
    exact = norm(x)
    norm.bfloat16()
    found = SinglePassNorm(norm)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert error(found.float(), exact) <= error(norm(x.bfloat16()).float(), exact) < 2e-2
    images = WanRMS_norm(5)
    torch.testing.assert_close(SinglePassNorm(images)(x[:, :, 0]), images(x[:, :, 0]), rtol=1e-5, atol=1e-5)


def test_rotation_is_diffusers_rotation() -> None:
    from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

    torch.manual_seed(0)
    attn = WanAttention(dim=24, heads=2, dim_head=12, cross_attention_dim_head=None, processor=WanAttnProcessor())
    x, angles = torch.randn(2, 10, 24), torch.randn(1, 10, 1, 6).repeat_interleave(2, dim=-1)
    rotary = (angles.cos(), angles.sin())
    with torch.no_grad():
        expected = attn(x, None, None, rotary)
        attn.set_processor(FusedSelfAttention(attn))
        torch.testing.assert_close(attn(x, None, None, rotary), expected, rtol=1e-5, atol=1e-5)
    half = torch.randn(1, 10, 2, 12)
    torch.testing.assert_close(rotate(half.bfloat16(), *rotary).float(), rotate(half, *rotary), rtol=2e-2, atol=2e-2)


def test_fused_projections_are_views_of_one_matrix() -> None:
    from diffusers.models.transformers.transformer_wan import WanAttention

    attn = WanAttention(dim=24, heads=2, dim_head=12, cross_attention_dim_head=None)
    projection = FusedSelfAttention(attn).projection
    assert projection is not None
    fused = projection.weight
    for part in (attn.to_q, attn.to_k, attn.to_v):
        assert part.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()


def test_offload_leaves_nothing_on_the_device(folder: Callable[[str], Path]) -> None:
    prior = load(TOYS["wan2.1"], folder("wan2.1"), offload=True)
    expected = load(TOYS["wan2.1"], folder("wan2.1"))(frames(1))
    for _ in range(2):
        assert error(prior(frames(1)), expected) < 1e-6
        assert all(block.attn1.processor.projection is None for block in prior.blocks())


def test_equal_keys_are_one_key_with_the_logarithm_of_their_number() -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    query = torch.randn(1, 1, 5, 8)
    many = [torch.cat([t[:1], t[1:].expand(511, -1, -1)]).transpose(0, 1)[None] for t in (keys, values)]
    expected = F.scaled_dot_product_attention(query, *many)
    two = [t.transpose(0, 1)[None] for t in (keys, values)]
    bias = torch.tensor([[0.0, 511.0]]).log().clamp_min(0)
    torch.testing.assert_close(F.scaled_dot_product_attention(query, *two, attn_mask=bias), expected)


def test_many_keys_are_not_folded_into_a_larger_matrix() -> None:
    from diffusers.models.transformers.transformer_wan import WanAttention

    attn = WanAttention(dim=24, heads=2, dim_head=12, cross_attention_dim_head=12)
    for count, folded in ((6, True), (7, False)):
        keys = torch.randn(count, 2, 12)
        processor = PromptAttention(keys, keys, torch.zeros(count))
        processor.fold_output(attn)
        assert (processor.tables is not None) == folded


def test_a_folded_block_looks_at_no_timestep() -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    torch.manual_seed(0)
    block = WanTransformerBlock(24, 48, 2, cross_attn_norm=True).eval()
    x, prompt, projection = torch.randn(1, 10, 24), torch.randn(1, 3, 24), torch.randn(6, 24)
    angles = torch.randn(1, 10, 1, 6).repeat_interleave(2, dim=-1)
    rotary = (angles.cos(), angles.sin())
    with torch.no_grad():
        expected = block(x, prompt, projection[None], rotary)
        folded = FoldedBlock(block)
        folded.fold(projection)
        torch.testing.assert_close(folded(x, prompt, torch.full((1,), torch.nan), rotary), expected)
    assert not folded.state_dict().keys() ^ block.state_dict().keys()
