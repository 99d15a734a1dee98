"""Worlds of textured planes seen by a moving pinhole camera, with exact correspondence.

A plane is ``normal . X = 1`` in the first camera's frame, so a pixel's depth is a division and a point's way into
another frame a projection: nothing is traced or interpolated. A picture shows, at each pixel, the nearest plane whose
shape covers the point. Textures are sums of waves, evaluated where they are seen, never sampled from a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Focal length in frame widths: a field of view of 53 degrees.
FOCAL = 1.0
WAVES = 5


@dataclass(frozen=True)
class WorldSettings:
    """What worlds are drawn.

    Attributes:
        size: pixels in height and width.
        frames: of a clip.
        layers: fewest and most planes before the background.
        motion: least and largest shift of the background between neighbouring frames, in pixels.
        whole: round that shift to multiples of so many pixels; 0: do not round.
        slant: largest slope of a plane, in depths a depth.
        zoom: largest camera motion along its axis between neighbouring frames, in depths of the background.
        wavelengths: shortest and longest of the textures, in pixels.
        nearest: depth of the nearest plane, in depths of the background; its motion is that many times larger.
        contrast: least and largest contrast of a world. At 1 tokens differ more than in most photographs.
    """

    size: int = 24
    frames: int = 2
    layers: tuple[int, int] = (0, 3)
    motion: tuple[float, float] = (0.0, 4.0)
    whole: int = 0
    slant: float = 0.2
    zoom: float = 0.1
    wavelengths: tuple[float, float] = (6.0, 24.0)
    nearest: float = 0.4
    contrast: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Worlds:
    """``B`` worlds of ``L`` planes, and the way of a camera through each.

    Attributes:
        normals: ``[B, L, 3]``: plane l holds the points with ``normal . X = 1``; the unit is the background's depth.
        centres: ``[B, L, 2]``, of the planes' shapes, in ``X / depth`` of the plane's axis point, frame widths.
        radii: ``[B, L, 2]``, of the shapes (superellipses); infinite for the background.
        colours: ``[B, L, 3, 3]``: a base colour and what two fields of waves add to it.
        gains: ``[B, L, 2]``: how sharp the edges within a texture are.
        waves: ``[B, L, 2, WAVES, 3]``: angular frequencies along both axes of the plane (per unit), and a phase.
        cameras: ``[B, T, 3]``: positions; the first is the origin.
        size: pixels in height and width.
    """

    normals: Tensor
    centres: Tensor
    radii: Tensor
    colours: Tensor
    gains: Tensor
    waves: Tensor
    cameras: Tensor
    size: int

    # Geometry

    def rays(self) -> Tensor:
        """Viewing rays ``[N, 3]`` of the pixels' centres in raster order, of depth 1."""
        steps = (torch.arange(self.size) + 0.5) / self.size - 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        return torch.stack([x / FOCAL, y / FOCAL, torch.ones_like(x)], dim=-1).flatten(0, 1)

    def look(self, cameras: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
        """What rays meet: points ``[B, T, N, 3]`` and the index of their plane ``[B, T, N]``.

        Args:
            cameras: positions ``[B, T, 3]``.
            rays: ``[B or 1, T or 1, N, 3]``, of depth 1.
        """
        normals = self.normals[:, None, None]  # [B, 1, 1, L, 3]
        ahead = (1 - (normals[:, :, 0] * cameras[:, :, None]).sum(-1))[:, :, None]  # [B, T, 1, L]
        depth = ahead / (normals * rays[:, :, :, None]).sum(-1)  # [B, T, N, L]
        points = cameras[:, :, None, None] + depth[..., None] * rays[:, :, :, None]
        covered = self._covers(points) & (depth > 1e-3)
        plane = torch.where(covered, depth, torch.inf).argmin(-1)
        chosen = plane[..., None, None].expand(*plane.shape, 1, 3)
        return points.gather(3, chosen).squeeze(3), plane

    def _on_plane(self, points: Tensor) -> Tensor:
        """Points ``[..., L, 3]`` to frame widths on their plane ``[..., L, 2]``: where the first camera sees them if
        the plane is frontal."""
        return points[..., :2] * FOCAL * self._axis_inverse()

    def _axis_inverse(self) -> Tensor:
        return self.normals[:, None, None, :, 2:]  # inverse depth of the plane on the first camera's axis

    def _covers(self, points: Tensor) -> Tensor:
        offset = (self._on_plane(points) - self.centres[:, None, None]) / self.radii[:, None, None]
        return offset.pow(4).sum(-1) < 1

    def follow(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        """Where the pixels of one frame are in another.

        Returns:
            Positions ``[B, N, 2]`` (x, y) in pixels, the first pixel's centre at 0.5, and whether the point is seen
            there ``[B, N]``: inside the frame and not hidden.
        """
        rays = self.rays()[None, None]
        points, plane = self.look(self.cameras[:, first : first + 1], rays)
        camera = self.cameras[:, second : second + 1]
        offset = points - camera[:, :, None]
        seen_along = offset / offset[..., 2:].clamp_min(1e-3)
        _, there = self.look(camera, seen_along)
        position = (seen_along[..., :2] * FOCAL + 0.5) * self.size
        inside = ((position > 0) & (position < self.size)).all(-1) & (offset[..., 2] > 1e-3)
        return position[:, 0], (inside & (there == plane))[:, 0]

    def depths(self) -> Tensor:
        """Depth along the camera's axis ``[B, T, H, W]``, in depths of the background."""
        points, _ = self.look(self.cameras, self.rays()[None, None])
        return (points - self.cameras[:, :, None])[..., 2].unflatten(2, (self.size, self.size))

    # Pictures

    def render(self) -> Tensor:
        """Frames ``[B, T, 3, H, W]`` in [0, 1]."""
        pixels = self.colours_at(self.cameras, self.rays()[None, None])
        return pixels.transpose(2, 3).unflatten(3, (self.size, self.size))

    def colours_at(self, cameras: Tensor, rays: Tensor) -> Tensor:
        """What is seen along rays ``[B, T, N, 3]``, in [0, 1]; arguments as for :meth:`look`."""
        points, plane = self.look(cameras, rays)
        batch = torch.arange(plane.shape[0])[:, None, None]
        place = points[..., :2] * FOCAL * self.normals[batch, plane][..., 2:]
        waves = self.waves[batch, plane]  # [B, T, N, 2, WAVES, 3]
        angle = (waves[..., :2] * place[..., None, None, :]).sum(-1) + waves[..., 2]
        fields = torch.tanh(torch.sin(angle).mean(-1) * (2 * WAVES) ** 0.5 * self.gains[batch, plane])
        colours = self.colours[batch, plane]
        return (colours[..., 0, :] + (fields[..., None] * colours[..., 1:, :]).sum(-2)).clamp(0, 1)


def draw_worlds(settings: WorldSettings, batch: int, seed: int) -> Worlds:
    """Draw worlds: the same for the same arguments, on any machine with the same torch."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    most = settings.layers[1] + 1
    depth = uniform(batch, most, low=settings.nearest, high=0.85)
    depth[:, 0] = 1.0
    slopes = uniform(batch, most, 2, low=-settings.slant, high=settings.slant)
    normals = torch.cat([slopes, torch.ones(batch, most, 1)], dim=-1) / depth[..., None]
    radii = uniform(batch, most, 2, low=0.15, high=0.35)
    count = torch.randint(settings.layers[0], most, (batch, 1), generator=generator)
    # A plane that is not there has a shape too small to be met.
    radii = torch.where((torch.arange(most) <= count)[..., None], radii, 1e-9)
    radii[:, 0] = 1e9
    low, high = settings.wavelengths
    wavelength = low * (high / low) ** uniform(batch, most, 2, WAVES) / settings.size
    direction = uniform(batch, most, 2, WAVES, high=2 * torch.pi)
    frequency = 2 * torch.pi / wavelength
    waves = torch.stack(
        [frequency * direction.cos(), frequency * direction.sin(), uniform(batch, most, 2, WAVES, high=2 * torch.pi)],
        dim=-1,
    )
    colours = torch.cat(
        [uniform(batch, most, 1, 3, low=0.25, high=0.75), uniform(batch, most, 2, 3, low=-0.35, high=0.35)], dim=2
    )
    centres = uniform(batch, most, 2, low=-0.4, high=0.4)
    gains = 0.5 * 6 ** uniform(batch, most, 2)
    cameras = _ways(settings, batch, generator)
    contrast = uniform(batch, 1, 1, 1, low=settings.contrast[0], high=settings.contrast[1])
    grey = 0.5 * (torch.arange(3) == 0).float()[:, None]
    return Worlds(
        normals=normals,
        centres=centres,
        radii=radii,
        colours=grey + contrast * (colours - grey),
        gains=gains,
        waves=waves,
        cameras=cameras,
        size=settings.size,
    )


def _ways(settings: WorldSettings, batch: int, generator: torch.Generator) -> Tensor:
    """Camera positions ``[B, T, 3]``: straight ways of even speed from the origin."""
    low, high = settings.motion
    speed = low + (high - low) * torch.rand(batch, 1, generator=generator)
    direction = 2 * torch.pi * torch.rand(batch, 1, generator=generator)
    shift = torch.cat([speed * direction.cos(), speed * direction.sin()], dim=-1)
    if settings.whole:
        shift = (shift / settings.whole).round() * settings.whole
    along = settings.zoom * (2 * torch.rand(batch, 1, generator=generator) - 1)
    step = torch.cat([shift / settings.size / FOCAL, along], dim=-1)
    return torch.arange(settings.frames)[None, :, None] * step[:, None]
