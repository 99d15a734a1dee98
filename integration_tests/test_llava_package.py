"""What the seam of the package ``llava`` hands to the branch, for everything that the package can be given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hosts
import numpy as np
import pytest
import torch
from doubles.llava import double_model
from hosts import logits
from rows.llava_package import CROP, installed, mixed_batch, next_model, pictures, prompt
from torch import Tensor, nn
from watching import Watching

import vega3d
from vega3d_llava_video.llava_reader import LlavaReader
from vega3d_plugin.contracts import errors
from vega3d_plugin.contracts.errors import SeamMissedWarning
from vega3d_plugin.contracts.pixel_statistics import CLIP
from vega3d_plugin.evaluation.doctor.examine import examine

Build = Callable[..., nn.Module]
REAL = installed() == "LLaVA-NeXT"


@pytest.fixture(params=["double", "LLaVA-NeXT"] if REAL else ["double"])
def build(request: pytest.FixtureRequest) -> Build:
    return next_model if request.param == "LLaVA-NeXT" else double_model


def watch(model: nn.Module, **settings: Any) -> tuple[nn.Module, Watching]:
    prior = Watching()
    return vega3d.patch(model, prior, projector=hosts.PROJECTOR, **settings), prior


def shown(pixels: Tensor) -> Tensor:
    """What the branch should see of normalised pixels."""
    return pixels * 0.5 + 0.5


def test_frames_come_back_clip_by_clip(build: Build) -> None:
    model, prior = watch(build())
    batch = mixed_batch()
    logits(model, batch)
    first, video, last = batch["images"]
    for frames, pixels in zip(prior.seen, [first, last, video], strict=True):
        torch.testing.assert_close(frames, shown(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "no_token"])
def test_every_newline_mode(build: Build, newline: str) -> None:
    model, batch = build(mm_newline_position=newline), mixed_batch()
    before = logits(model, batch)
    hosts.patch(model)
    assert torch.equal(logits(model, batch), before)
    hosts.patch(vega3d.unpatch(model), init="released")
    open_branch = logits(model, batch)
    assert open_branch.shape == before.shape
    assert not torch.equal(open_branch, before)


def test_only_the_tokens_of_the_right_kind_are_touched() -> None:
    """A video's frames go on to the pooling as the host encoded them; newline tokens are the host's own."""
    model, batch = double_model(), mixed_batch()
    plain = model.encode_images(torch.cat(batch["images"]))
    vega3d.patch(model, Watching(), projector=hosts.PROJECTOR, fusion="only", init="released")
    seen: dict[str, Tensor] = {}
    tower = type(model).get_2dPool

    class Spy(type(model)):  # type: ignore[misc]
        def get_2dPool(self, image_feature: Tensor, stride: int = 2) -> Tensor:  # noqa: N802
            seen["video"] = image_feature
            return tower(self, image_feature, stride)

    model.__class__ = Spy
    logits(model, batch)
    assert torch.equal(seen["video"], plain[1:5])


def test_a_batch_of_tensors_and_pictures_alone(build: Build) -> None:
    """Images as one tensor: ``[B, 3, H, W]``, or ``[B, n, 3, H, W]``."""
    for images, clips in ((pictures(2), 2), (pictures(2)[:, None], 2)):
        model, prior = watch(build())
        batch = {"input_ids": prompt(1).repeat(2, 1), "images": images, "modalities": ["image", "image"]}
        logits(model, batch)
        assert len(prior.seen) == clips
        torch.testing.assert_close(torch.cat(prior.seen), shown(images.flatten(0, -4)), rtol=0, atol=1e-6)


#: Of a model whose images are cut into tiles, and such an image's size.
ANYRES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
SIZE = (100, 110)


def anyres_model(build: Build, **settings: Any) -> Any:
    model: Any = build(**ANYRES, **settings)
    tower = model.get_vision_tower()
    if not hasattr(type(tower), "image_size"):
        # That of SigLIP has it.
        tower.image_size = CROP
    return model


def test_tiles_of_an_image_are_clips_of_their_own(build: Build) -> None:
    model, tiles = anyres_model(build), pictures(5)
    plain = model.encode_images(tiles).detach()
    prior = watch(model)[1]
    tokens: list[Tensor] = []
    vega3d.get_handle(model).branch.register_forward_pre_hook(lambda module, args: tokens.append(args[0].detach()))
    logits(model, {"input_ids": prompt(1), "images": [tiles], "modalities": ["image"], "image_sizes": [SIZE]})
    assert [len(frames) for frames in prior.seen] == [1] * 5
    torch.testing.assert_close(torch.cat(prior.seen), shown(tiles), rtol=0, atol=1e-6)
    assert torch.equal(tokens[0], plain.flatten(0, 1))


if REAL:

    @pytest.mark.parametrize(
        "merge", ["spatial", "spatial_unpad", "spatial_maxpool2x2", "spatial_unpad_nobase", "flat"]
    )
    def test_anyres_of_the_real_package(merge: str) -> None:
        model = anyres_model(next_model, mm_patch_merge_type=merge)
        batch = {"input_ids": prompt(1), "images": [pictures(5)], "modalities": ["image"], "image_sizes": [SIZE]}
        before = logits(model, batch)
        hosts.patch(model)
        assert torch.equal(logits(model, batch), before)
        hosts.patch(vega3d.unpatch(model), init="released")
        assert not torch.equal(logits(model, batch), before)


if REAL:

    def siglip_model() -> nn.Module:
        """LLaVA-Video's own vision tower, as wide as 32, without its download."""
        from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionConfig, SigLipVisionModel

        wide = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": 32, "delay_load": True}
        model = next_model(**wide)
        tower = model.get_vision_tower()
        config = SigLipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=384
        )
        tower.vision_tower = SigLipVisionModel(config)
        tower.vision_tower.vision_model.head = nn.Identity()
        return model.eval()

    def test_llava_video_as_it_is_released() -> None:
        """27x27 patches, pooled to 14x14 tokens a frame; the tower counts as unloaded until its weights are in."""
        model = siglip_model()
        with pytest.raises(errors.HostError, match="siglip-so400m-patch14-384' is not loaded yet"):
            hosts.patch(model)
        model.get_vision_tower().is_loaded = True
        batch = {"input_ids": prompt(1), "images": [pictures(8, side=384)], "modalities": ["video"]}
        before = logits(model, batch)
        hosts.patch(model)
        with vega3d.record_gates(model) as gates:
            assert torch.equal(logits(model, batch), before)
        assert [tuple(gate.shape) for gate in gates] == [(8, 14, 14)]


def test_rows_of_text_beside_rows_with_images(build: Build) -> None:
    """A row of text has an entry all the same, whose tokens are dropped."""
    model, prior = watch(build(), images="scene")
    ids = torch.cat([prompt(1, 3), torch.nn.functional.pad(prompt(), (0, 2)), prompt(2, 4)])
    images = [pictures(1, seed=i) for i in range(5)]
    logits(
        model, {"input_ids": ids, "images": images, "modalities": ["image"] * 5, "attention_mask": torch.ones_like(ids)}
    )
    assert [len(frames) for frames in prior.seen] == [2, 1, 2]


def test_rows_with_an_image_a_video_and_words(build: Build) -> None:
    """What a training batch mixes."""
    ids = torch.cat([prompt(1), prompt(3), torch.nn.functional.pad(prompt(), (0, 1))])
    images = [pictures(1, seed=1), pictures(4, seed=2), pictures(1, seed=3)]
    batch = {
        "input_ids": ids, "images": images, "modalities": ["image", "video", "image"],
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    model = build()
    before = logits(model, batch)
    prior = watch(model)[1]
    assert torch.equal(logits(model, batch), before)
    # The last is the entry that a row of words takes all the same.
    for frames, pixels in zip(prior.seen, (images[0], images[2], images[1]), strict=True):
        torch.testing.assert_close(frames, shown(pixels), rtol=0, atol=1e-6)


def test_images_of_one_sample_as_the_views_of_one_scene(build: Build) -> None:
    model, prior = watch(build(), images="scene")
    batch = {
        "input_ids": prompt(1, 2, 5),
        "images": [pictures(1, seed=i) for i in range(3)],
        "modalities": ["image"] * 3,
    }
    with vega3d.record_gates(model) as gates:
        logits(model, batch)
    (views,) = prior.seen
    torch.testing.assert_close(views, shown(torch.cat(batch["images"])), rtol=0, atol=1e-6)
    assert [tuple(gate.shape) for gate in gates] == [(3, 4, 4)]


def test_an_image_that_was_cut_into_tiles_is_no_view_of_a_scene() -> None:
    model, prior = watch(double_model(), images="scene")
    images = [pictures(1, seed=1), pictures(3, seed=2), pictures(1, seed=3), pictures(1, seed=4)]
    logits(model, {"input_ids": prompt(1, 2, 3, 5), "images": images, "modalities": ["image"] * 4})
    assert [len(frames) for frames in prior.seen] == [1, 1, 1, 1, 2]


def test_images_around_a_video_are_one_scene_and_the_video_its_own(build: Build) -> None:
    model, prior = watch(build(), images="scene")
    logits(model, mixed_batch())
    assert [len(frames) for frames in prior.seen] == [2, 4]


def test_slow_and_fast_frames_are_fused_each_in_its_own_grid() -> None:
    """Forks with ``add_faster_video`` pool the same features twice; each pooling is fused, from the same frames."""
    model, batch = double_model(add_faster_video=True), mixed_batch()
    before = logits(model, batch)
    hosts.patch(model)
    assert torch.equal(logits(model, batch), before)
    with vega3d.record_gates(model) as gates:
        logits(model, batch)
    assert [tuple(gate.shape) for gate in gates] == [(1, 4, 4), (1, 4, 4), (4, 2, 2), (4, 1, 1)]


if REAL:

    def test_faster_video_of_the_real_package_fails_by_itself() -> None:
        for model in (next_model(add_faster_video=True), hosts.patch(next_model(add_faster_video=True))):
            with pytest.raises(NameError, match="all_faster_video_features"):
                logits(model, mixed_batch())

    def test_its_own_method_for_slow_and_fast_frames() -> None:
        """``encode_multimodals``, which forks call in place of ``encode_images``. It lets go of what it has pooled."""
        model = next_model(add_faster_video=True, mm_spatial_pool_stride=2)

        class Fork(type(model)):  # type: ignore[misc]
            def prepare_inputs_labels_for_multimodal(self, input_ids, images=None, **kwargs):
                return self.encode_multimodals(torch.cat(images), [0, 1, 2], [4, 4, 4])

        model.__class__ = Fork
        videos = [pictures(4, seed=seed) for seed in range(3)]
        with torch.no_grad():
            given = {"input_ids": prompt(1, 3, 5), "images": videos, "modalities": ["video"] * 3}
            before = model.prepare_inputs_labels_for_multimodal(**given)
            prior = watch(model)[1]
            after = model.prepare_inputs_labels_for_multimodal(**given)
        for ours, theirs in zip(after, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        for frames, pixels in zip(prior.seen, [video for video in videos for _ in range(2)], strict=True):
            torch.testing.assert_close(frames, shown(pixels), rtol=0, atol=1e-6)


def test_a_fork_that_hands_on_what_it_does_not_name() -> None:
    """Which entries are videos, among the ``**kwargs`` of an override."""
    model = double_model()

    class Passing(type(model)):  # type: ignore[misc]
        def prepare_inputs_labels_for_multimodal(self, input_ids, position_ids, mask, cache, labels, images, *a, **kw):
            return super().prepare_inputs_labels_for_multimodal(
                input_ids, position_ids, mask, cache, labels, images, *a, **kw
            )

        def forward(self, input_ids=None, images=None, modalities=None):
            *_, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                input_ids, None, None, None, None, images, modalities=modalities
            )
            return super().forward(inputs_embeds=embeds)

    model.__class__ = Passing
    prior = watch(model)[1]
    batch = mixed_batch()
    logits(model, batch)
    assert [len(frames) for frames in prior.seen] == [1, 1, 4]


def test_videos_that_are_pooled_from_copies_keep_their_frames() -> None:
    """A fork that pools a copy and lets go of it, so that the next video's copy may lie where it lay."""
    model = double_model()

    class Copying(type(model)):  # type: ignore[misc]
        def _packed(self, feature: Tensor, video: bool) -> Tensor:
            return super()._packed(feature.clone(), video)

    model.__class__ = Copying
    prior = watch(model)[1]
    videos = [pictures(4, seed=seed) for seed in range(3)]
    with torch.no_grad():
        model(input_ids=prompt(1, 3, 5), images=videos, modalities=["video"] * 3)
    for frames, pixels in zip(prior.seen, videos, strict=True):
        torch.testing.assert_close(frames, shown(pixels), rtol=0, atol=1e-6)


def test_two_videos_of_different_length(build: Build) -> None:
    model, prior = watch(build())
    videos = [pictures(3, seed=1), pictures(5, seed=2)]
    batch = {"input_ids": prompt(1, 4), "images": videos, "modalities": ["video", "video"]}
    logits(model, batch)
    for frames, pixels in zip(prior.seen, videos, strict=True):
        torch.testing.assert_close(frames, shown(pixels), rtol=0, atol=1e-6)


def test_pixels_in_bfloat16(build: Build) -> None:
    model, prior = watch(build().bfloat16())
    batch = hosts.in_dtype(mixed_batch(), torch.bfloat16)
    logits(model, batch)
    assert prior.seen[0].dtype == torch.float32
    # Of 8 bits, as pictures are: what bfloat16 rounded away comes back.
    levels = (255 * shown(batch["images"][0].float())).round() / 255
    torch.testing.assert_close(prior.seen[0], levels, rtol=0, atol=1e-6)


def test_a_step_of_decoding_is_no_missed_image(build: Build, recwarn: pytest.WarningsRecorder) -> None:
    """The package calls ``prepare...`` at each step, and it returns early for a prompt of one token."""
    model, prior = watch(build())
    model(input_ids=torch.tensor([[3]]), images=[pictures(1)], modalities=["image"])
    assert not prior.seen
    assert not [w for w in recwarn if issubclass(w.category, SeamMissedWarning)]


def test_encode_images_by_itself(build: Build) -> None:
    model, prior = watch(build())
    model.encode_images(pictures(2))
    assert len(prior.seen) == 2


def test_a_video_that_is_pooled_elsewhere_is_named() -> None:
    """A fork with a pooling of its own: the images were fused, the video was not."""
    model = double_model()
    own = type(model).get_2dPool

    class Fork(type(model)):  # type: ignore[misc]
        def _packed(self, feature: Tensor, video: bool) -> Tensor:
            return own(self, feature).flatten(0, 1) if video else feature.flatten(0, 1)

    model.__class__ = Fork
    hosts.patch(model)
    with pytest.warns(SeamMissedWarning, match=r"did not see 1 video\(s\), because 'get_2dPool' was not called"):
        logits(model, mixed_batch())
    batch = mixed_batch()
    with pytest.warns(SeamMissedWarning, match="encoded images, but the branch did not see 1 video"):
        model.generate(batch.pop("input_ids"), **batch, max_new_tokens=2)


def test_images_that_are_encoded_elsewhere_are_named() -> None:
    """A fork that encodes a second time, past the method, and takes those tokens."""
    model = double_model()

    class Fork(type(model)):  # type: ignore[misc]
        def prepare_inputs_labels_for_multimodal(self, input_ids, *args, **kwargs):
            self.encode_images = super().encode_images
            try:
                return super().prepare_inputs_labels_for_multimodal(input_ids, *args, **kwargs)
            finally:
                self.__dict__["encode_images"] = replacement

    model.__class__ = Fork
    hosts.patch(model)
    replacement = model.__dict__["encode_images"]
    with pytest.warns(SeamMissedWarning, match=r"did not see 2 image\(s\), because 'encode_images' was not called"):
        logits(model, mixed_batch())


def test_the_branch_takes_after_the_projector() -> None:
    """Not after whatever comes last in the inner model, which may be quantised or lie elsewhere."""
    model = double_model()
    model.get_model().add_module("later", nn.Linear(2, 2).bfloat16())
    hosts.patch(model)
    assert {p.dtype for p in vega3d.get_handle(model).parameters()} == {torch.float32}


def test_a_fork_that_pools_in_another_order_is_an_error() -> None:
    model = double_model()

    class Backwards(type(model)):  # type: ignore[misc]
        def encode_images(self, images: Tensor) -> Tensor:
            return super().encode_images(images)

        def _packed(self, feature: Tensor, video: bool) -> Tensor:
            return super()._packed(feature[:2] if video else feature, video)

    model.__class__ = Backwards
    hosts.patch(model)
    with pytest.raises(errors.AlignmentError, match="pools in another order"):
        logits(model, mixed_batch())


def test_nothing_is_left_in_the_instance(build: Build) -> None:
    model = build()
    hosts.patch(model)
    assert {"encode_images", "get_2dPool", "prepare_inputs_labels_for_multimodal"} <= set(model.__dict__)
    twin = copy.deepcopy(model)
    assert twin.__dict__["encode_images"].owner is twin
    vega3d.unpatch(model)
    assert "encode_images" not in model.__dict__
    assert "encode_images" in twin.__dict__


def test_the_released_settings_of_this_host(build: Build) -> None:
    """Projector, pooling and fusion of the released LLaVA-Video branch, at its 14x14 = here 2x2 tokens."""
    model = build()
    config = {
        "projector": {"name": "mlp2x_gelu"}, "space": "adaptive_avg",
        "fusion": {"name": "token_gated", "init": "released"}, "prior": {"name": "tiny-wan"},
    }  # fmt: skip
    vega3d.patch(model, "tiny-wan", config=config)
    names = [name for name, _ in model.named_parameters() if ".vega3d." in name]
    assert names
    assert all(name.startswith("model.vega3d.") for name in names)
    logits(model, mixed_batch())


# Bad input.


def test_a_tower_that_is_not_loaded() -> None:
    with pytest.raises(errors.HostError, match=r"not loaded yet \(delay_load\).*load_model"):
        hosts.patch(double_model(delay_load=True))


def test_a_host_without_vision_modules() -> None:
    model = double_model()
    model.get_model().mm_projector = None
    with pytest.raises(errors.HostError, match=r"model\.mm_projector, found NoneType"):
        hosts.patch(model)


def test_a_projector_of_another_width() -> None:
    model = double_model()
    model.get_model().mm_projector = nn.Linear(24, 48)
    with pytest.raises(errors.HostError, match=r"hidden size 32.*gives 48"):
        hosts.patch(model)


def test_a_tower_without_statistics() -> None:
    model = double_model()
    model.get_vision_tower().image_processor = None
    with pytest.raises(errors.HostError, match="no image_mean and image_std"):
        hosts.patch(model)
    hosts.patch(model, processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3))


def test_wrong_statistics_are_named() -> None:
    clip = SimpleNamespace(image_mean=CLIP.mean, image_std=CLIP.std)
    batch = mixed_batch()
    # In range: what is wrong within it cannot be seen.
    logits(hosts.patch(double_model(), processor=clip), batch)
    plain = SimpleNamespace(do_normalize=False)
    model = hosts.patch(double_model(), processor=plain)
    with pytest.raises(errors.FramesError, match=r"mean \(0, 0, 0\), std \(1, 1, 1\), from the processor") as caught:
        logits(model, batch)
    assert "lie in [-1.00, 1.00]: these pixel statistics are wrong. These would fit: 0.5 through" in str(caught.value)
    batch["images"] = [images * 3 for images in batch["images"]]
    with pytest.raises(errors.FramesError, match=r"statistics are wrong\. Pass the processor"):
        logits(model, batch)


def test_a_resampler_keeps_no_grid() -> None:
    model = double_model()
    reader = vega3d.get_handle(hosts.patch(model)).seam.reader
    assert isinstance(reader, LlavaReader)
    model.get_model().mm_projector.register_forward_hook(lambda m, a, out: out[:, :15])
    with pytest.raises(errors.AlignmentError, match="square grid of tokens per picture, found 15"):
        logits(model, {"input_ids": prompt(1), "images": [pictures(1)], "modalities": ["image"]})


def test_a_method_that_somebody_replaced_already() -> None:
    model = double_model()
    model.encode_images = lambda images: images
    with pytest.raises(errors.HostError, match=r"'encode_images' of .* was already replaced in this instance"):
        hosts.patch(model)
    assert not vega3d.is_patched(model)


def test_history_is_for_policies() -> None:
    with pytest.raises(errors.HostError, match="history=3 is for policies"):
        hosts.patch(double_model(), history=3)


# Doctor.


class Processor:
    """As the vision tower's image processor is called."""

    image_mean = image_std = (0.5, 0.5, 0.5)

    def preprocess(self, images: list[Any], return_tensors: str) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        resized = [np.array(image.convert("RGB").resize((CROP, CROP), resample=3)) for image in images]
        shown = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        return {"pixel_values": (shown - 0.5) / 0.5}


def test_doctor_shows_an_image_and_a_video(build: Build) -> None:
    model: Any = build()
    own = model.get_vision_tower().image_processor
    found = {check.name: check for check in examine(model, own if hasattr(own, "preprocess") else Processor())}
    assert {name: check.status for name, check in found.items() if check.status != "PASS"} == {}
    assert found["seam"].measured == "image: 1 call, 1x4x4 tokens; video: 1 call, 4x2x2 tokens"


def test_doctor_finds_pixels_in_another_range(build: Build) -> None:
    other = Processor()
    other.image_mean, other.image_std = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)
    found = {check.name: check.status for check in examine(build(), other)}
    assert (found["processor"], found["pixels"]) == ("WARN", "FAIL")
