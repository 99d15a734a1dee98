"""The clips of a recipe's rows, exactly as training would see them: what ``vega3d extract`` is given to extract."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..branch.alignment import grid_of
from ..branch.branch import GenerativeBranch
from ..contracts.clips import Clip
from ..contracts.errors import BadRowsError, RowError, StoreError, TrainError
from ..contracts.priors import Prior
from ..contracts.settings import BranchSettings
from ..contracts.tables import HOSTS
from ..features.extraction.planning import cost_of, rate_of
from ..features.extraction.shard import Opened
from ..features.forms import decode, encode
from ..features.store import FeatureStore
from ..hosts.hollow import HollowHost, build_hollow
from ..hosts.loading import load_processor, read_source
from ..priors.load import load_prior
from ..recipes.blocks import DataSettings, StoreSettings
from ..recipes.library import Recipe, branch_settings, read_recipe
from ..recipes.schema import TINY, HostSettings, RecipeSettings
from ..scenes.images import find_images
from ..scenes.opening import expand
from .data import BadRow, Collator
from .model.building import check_host, limit_pixels, tiny_host, uses_bf16
from .rows.conversation import Conversation, read_conversation
from .rows.encoding import Encoder
from .rows.files import Rows
from .unit_keys import common_key, media_key

#: Rows of one unit that are tried before it is given up: one may be too long for the host, another not.
TRIES = 3

#: What to do with a host whose rows only its own script can read.
NO_ROWS = (
    "If that trains a list of rows with the Trainer of transformers: vega3d extract --recipe RECIPE --store URL -- "
    "SCRIPT ARGS, with the arguments of the training. If it reads an endless stream in random order with crops drawn "
    "anew, as policies' scripts do, no clip comes twice, and nothing can be extracted beforehand; where it draws no "
    "crops, its first epoch fills a store: vega3d run --recipe RECIPE --store URL -- SCRIPT ARGS."
)


@dataclass(frozen=True)
class Request:
    """What to extract, in plain values.

    Attributes:
        recipe: its settings.
        store: where features go.
        device: where the prior runs and the host would be; None: CUDA where there is any.
    """

    recipe: RecipeSettings
    store: StoreSettings
    device: str | None = None

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class RecipeUnits:
    """The rows of a recipe, those with the same pictures taken together. See :class:`.features.extraction.shard.Units`.

    Args:
        request: what to extract.
        rows: to be used in place of the recipe's own.
        progress: wraps the numbers of the rows while they are looked at.

    Attributes:
        bad: rows that cannot be used, as training would find before it opens any picture.
        text: rows without pictures.

    Raises:
        TrainError: no rows, files that cannot be read, or a recipe without a branch.
        BadRowsError: no row can be used.
    """

    def __init__(
        self,
        request: Request,
        rows: Sequence[Mapping[str, Any]] | None = None,
        progress: Callable[[Sequence[int]], Any] = iter,
    ) -> None:
        self.request = request
        settings = request.recipe
        if settings.prior is None:
            raise TrainError("This recipe has `prior: null`: there is no prior whose features could be extracted.")
        self.data = settings.data or DataSettings(files=("none",))
        self.rows: Any = rows if rows is not None else Rows(self.data.files)
        self.bad: list[BadRow] = []
        self.text = 0
        self._common = common_key(settings, request.store)
        groups: dict[str, list[int]] = {}
        for number in progress(range(len(self.rows))):
            try:
                media = self._read(number).media
            except RowError as error:
                self.bad.append(BadRow(self._name(number), str(error)))
                continue
            if media:
                groups.setdefault(media_key(self._common, media), []).append(number)
            else:
                self.text += 1
        if not groups:
            first = f" The first: {self.bad[0]}" if self.bad else ""
            raise BadRowsError(f"None of the {len(self.rows)} rows has pictures that can be used.{first}")
        self._keys, self._rows = list(groups), [rows[:TRIES] for rows in groups.values()]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, unit: int) -> str:
        """See the protocol."""
        return self._keys[unit]

    def label(self, unit: int) -> str:
        """See the protocol."""
        return self._name(self._rows[unit][0])

    def store(self) -> FeatureStore:
        """See the protocol."""
        said = self.request.store
        return FeatureStore(said.url, memory_bytes=0, form=said.form, cache_bytes=said.cache_gb * 10**9)

    def open(self) -> OpenedRows:
        """See the protocol."""
        return OpenedRows(self)

    def conversations(self, unit: int) -> list[Conversation]:
        """Rows of a unit, any of which shows its clips."""
        return [self._read(number) for number in self._rows[unit]]

    def _read(self, number: int) -> Conversation:
        return read_conversation(self.rows[number], self.data, self._root(number))

    def _root(self, number: int) -> Path | None:
        if self.data.media_root is not None:
            return Path(self.data.media_root).expanduser()
        return self.rows.file_of(number).parent if isinstance(self.rows, Rows) else None

    def _name(self, number: int) -> str:
        return self.rows.name(number) if isinstance(self.rows, Rows) else f"{self.rows[number].get('name', number + 1)}"


class OpenedClips:
    """What a worker needs of a host without weights: the prior, and the branch that keeps its features.

    Args:
        request: what is extracted.
        store: where to.
        host: the model on the meta device, and its processor.
        bind: claim the store for the prior; without, nothing is written.
    """

    def __init__(self, request: Request, store: FeatureStore, host: tuple[Any, Any], *, bind: bool = True) -> None:
        settings = branch_settings(request.recipe)
        self.request, self.store = request, store
        self.host = HollowHost(*host, settings, request.recipe.host.adapter)
        self.prior = load_prior(settings.prior)
        if bind:
            self.store.bind(self.prior)
        self.branch = branch_without_weights(settings, self.prior, self.host, self.store)

    def name(self, clip: Clip) -> str:
        """See the protocol."""
        return self.branch.entry_name(clip, self.store)

    def keep(self, clip: Clip) -> None:
        """See the protocol."""
        self.branch.fill(clip)

    def online(self, clip: Clip) -> Tensor:
        """What a branch without a store uses of a clip, as the store's form would have it."""
        alone = branch_without_weights(self.branch.settings, self.prior, self.host, None)
        form = self.store.form
        features = alone.aligned(clip, clip.frames.device) if form.aligned else alone.features(clip)
        return decode(encode(features.cpu(), form.numbers))


class OpenedRows(OpenedClips):
    """Rows in a worker.

    Args:
        units: of the recipe.
        bind: as for :class:`OpenedClips`.
    """

    def __init__(self, units: RecipeUnits, *, bind: bool = True) -> None:
        self.units = units
        recipe = units.request.recipe
        # Before the weights are read: a mistake here is told at once.
        store = units.store()
        model, processor = hollow_host(recipe)
        super().__init__(units.request, store, (model, processor), bind=bind)
        self.encoder = Encoder(processor, units.data, recipe.train.max_length if recipe.train else None)
        # DeepSpeed hands floating-point inputs to a model in its own dtype.
        sharded = recipe.train is not None and recipe.train.deepspeed is not None and uses_bf16(recipe, recipe.train)
        self._dtype = torch.bfloat16 if sharded else None

    def clips(self, unit: int) -> list[Clip]:
        """See the protocol."""
        problem: Exception | None = None
        for conversation in self.units.conversations(unit):
            try:
                batch = Collator(self.encoder)([self.encoder(conversation)])
                return self.host.clips(self._cast(batch), self.units.request.place)
            except RowError as error:
                problem = problem or error
        raise problem or RowError("it has no rows")

    def _cast(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self._dtype is None:
            return batch
        return {k: v.to(self._dtype) if v.is_floating_point() else v for k, v in batch.items()}


def make_request(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    store: str | None = None,
    form: str | None = None,
    device: str | None = None,
    files: Sequence[str] = (),
) -> Request:
    """What a recipe, and options beside it, ask for.

    Args:
        recipe, overrides: as for :func:`~vega3d_plugin.recipes.library.read_recipe`.
        store, form: in place of what the recipe's block ``store`` says.
        device: where the prior runs.
        files: of rows, in place of the recipe's.

    Raises:
        RecipeError: the recipe is wrong.
        StoreError: nobody has said where features go.
    """
    # Of ``train`` only what changes what a host sees, which holds no paths.
    blocks = {*BranchSettings.model_fields, "host", "data", "store"}
    # The recipe's own rows and media need not be there then.
    given = [f"data.files={json.dumps(list(files))}", "data.media_root=null"] if files else []
    settings = read_recipe(recipe, [*given, *overrides], blocks=blocks)
    _check_has_classes(settings.host)
    return Request(settings, chosen_store(settings, store, form), device)


def chosen_store(settings: RecipeSettings, store: str | None, form: str | None) -> StoreSettings:
    """Where features go, and in which form: what is given, else what the recipe says.

    Raises:
        StoreError: nobody has said where.
    """
    said = settings.store
    if store is None and said is None:
        raise StoreError("Where should features go? Pass --store URL, or give the recipe a block `store`.")
    chosen = {"url": store} if store is not None else {}
    chosen |= {} if form is None else {"form": form}
    merged = {**(said.model_dump() if said is not None else {}), **chosen}
    return StoreSettings.parse(merged)


def _check_has_classes(host: HostSettings) -> None:
    try:
        check_host(host)
    except TrainError as error:
        adapter: Any = HOSTS.get(host.adapter)
        if host.model == TINY or not adapter.classes:
            raise
        raise TrainError(
            f"host.adapter: {host.adapter}: transformers has none of this host's classes "
            f"({', '.join(adapter.classes)}), so its own script has to show the clips. {NO_ROWS}"
        ) from error


def hollow_host(recipe: RecipeSettings) -> tuple[Any, Any]:
    """The host of a recipe on the meta device, and its processor.

    Raises:
        HostError: they cannot be built.
    """
    host = recipe.host
    tiny = tiny_host(host.adapter)
    if host.model == TINY and tiny is not None:
        model, processor = tiny()
        hollow = model.to(getattr(torch, host.dtype)).to("meta")
    else:
        found = read_source(host.model)
        hollow, processor = build_hollow(found.model_class, found.config, host.dtype), load_processor(host.model)
    limit_pixels(processor, host)
    return hollow, processor


def branch_without_weights(
    settings: BranchSettings, prior: Prior, host: HollowHost, store: FeatureStore | None
) -> GenerativeBranch:
    """The branch of a host, which can give and keep features and fuse nothing: its parameters are not there."""
    if prior.settings is not None:
        settings = settings.with_prior(prior.settings)
    with torch.device("meta"):
        return GenerativeBranch(settings, prior, host.seam, host.host, store).eval()


def media_rows(sources: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for videos, pictures, folders of frames and scenes, each by itself.

    Args:
        sources: paths, or addresses of scenes.
    """
    return [_media_row(each) for source in sources for each in (expand(source) if _is_scene(source) else [source])]


def _is_scene(source: str) -> bool:
    return not Path(source).expanduser().exists()


def _media_row(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    answer = {"role": "assistant", "content": "-"}
    if path.is_file() and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"):
        part: dict[str, Any] = {"type": "image", "image": str(path.resolve())}
    elif path.is_file() or (path.is_dir() and find_images(path)):
        part = {"type": "video", "video": str(path.resolve())}
    else:
        content = [{"type": "video"}, {"type": "text", "text": "-"}]
        return {"name": source, "scene": source, "messages": [{"role": "user", "content": content}, answer]}
    content = [part, {"type": "text", "text": "-"}]
    return {"name": source, "messages": [{"role": "user", "content": content}, answer]}


class Verifiable(Protocol):
    """Units that can be extracted again."""

    def __len__(self) -> int: ...

    def open(self) -> OpenedUnits:
        """See :meth:`.features.extraction.shard.Units.open`."""
        ...


class OpenedUnits(Opened, Protocol):
    """Units in a worker, which can also do without the store."""

    def online(self, clip: Clip) -> Tensor:
        """See :meth:`OpenedClips.online`."""
        ...


def verify_sample(
    units: Verifiable, count: int, progress: Callable[[Sequence[int]], Any] = iter, seed: int = 0
) -> dict[str, str]:
    """Compute the clips of some units again, as a model without a store does, and compare them with the store's.

    Args:
        units: that were extracted.
        count: of units.
        progress: wraps their numbers.
        seed: of the choice.

    Returns:
        What is not the same to the last bit, by the name of its entry; units that cannot be used are left out.
    """
    opened = units.open()
    chosen = random.Random(seed).sample(range(len(units)), min(count, len(units)))
    different = {}
    for unit in progress(chosen):
        try:
            clips = opened.clips(unit)
        except RowError:
            continue
        for clip in clips:
            name = opened.name(clip)
            kept, online = opened.store.get(name), opened.online(clip)
            if kept is None:
                different[name] = "it is not in the store"
            elif kept.shape != online.shape or kept.dtype != online.dtype:
                different[name] = f"{list(kept.shape)} {kept.dtype} in the store, {list(online.shape)} {online.dtype}"
            elif not torch.equal(kept, online):
                error = float((kept.float() - online.float()).abs().max() / online.float().abs().max())
                different[name] = f"it differs by up to {error:.1e} of the largest value"
    return different


def make_plan(units: RecipeUnits, device: str, sample: int = 8) -> dict[str, Any]:
    """What extracting would take: some units are decoded, the prior's weights are read, and nothing is computed.

    Args:
        units: to be extracted.
        device: see :func:`~vega3d_plugin.features.extraction.planning.rate_of`.
        sample: units that are decoded.

    Raises:
        BadRowsError: none of these units can be used; and as :class:`OpenedRows`.
    """
    rate = rate_of(device)
    opened = OpenedRows(units, bind=False)
    clips, good = [], 0
    for unit in range(len(units)):
        if good >= sample:
            break
        try:
            clips += opened.clips(unit)
            good += 1
        except RowError as error:
            units.bad.append(BadRow(units.label(unit), str(error)))
    if not clips:
        raise BadRowsError(f"None of the first rows can be used. The first: {units.bad[0]}")
    dtype = opened.prior.dtype_on(clips[0].frames.device)
    item = dtype.itemsize if dtype is not None else 4
    merge, costs = opened.branch.projector.merge, {}
    for clip in clips:
        kind = (clip.frames.shape, clip.grid)
        if kind not in costs:
            grid = grid_of(clip, merge)
            costs[kind] = cost_of(opened.prior, clip, opened.store.form, (grid.t, grid.h, grid.w), item)
    every = [costs[(clip.frames.shape, clip.grid)] for clip in clips]
    total = round(len(clips) / good * len(units))
    flops, size = (_mean([getattr(each, name) for each in every]) for name in ("flops", "bytes"))
    frames = clips[0].frames.shape
    return {
        "rows": len(units.rows),
        "units": len(units),
        "clips": total,
        "exact": good == len(units),
        "frames": int(frames[0]),
        "size": [int(frames[2]), int(frames[3])],
        "flops": None if flops is None else flops * total,
        "device": device,
        "hours": None if flops is None else flops * total / rate / 3600,
        "bytes": None if size is None else round(size * total),
        "form": str(opened.store.form),
        "there": len(opened.store.names()),
        "bad": {row.name: row.reason for row in units.bad},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
