"""Public annotation files of questions about ScanNet's scenes to rows of data.

Keys and prompts are those of ``scripts/3d/preprocessing/process_*.py`` of VEGA-3D (as in Video-3D LLM); its evaluation
scripts and ``vega3d score`` read them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contracts.errors import SceneError, near_misses
from ..scenes.readers.info_files import SUFFIXES as INFO_FILES
from ..scenes.readers.info_files import check_scene, read_info
from ..storage.reading import read_json
from .metrics.benchmarks.scanrefer import kinds_of_rows, read_label_ids
from .metrics.boxes import bounds, box_iou
from .metrics.captions.answers import question_type
from .metrics.errors import RowProblem, ScoreError
from .metrics.reading import read_rows
from .metrics.rows import Row

SPLITS = ("train", "val", "test")
#: Overlap from which a proposal stands for the object that is to be described.
OVERLAP = 0.5
#: Bytes of a file of boxes: ScanNet's have some 10 MB.
LARGEST_BOXES = 1 << 28
Made = dict[str, Any]


@dataclass
class AnnotationRows:
    """What became of annotation files.

    Attributes:
        rows: to be written.
        left_out: a message for each annotation that became none, with file, place and reason.
        read: annotations that were read.
        scenes: different scenes in ``rows``.
    """

    rows: list[Made] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    read: int = 0

    @property
    def scenes(self) -> int:
        """Different scenes, or videos, of the rows."""
        keys = ("video", "videos", "scene")
        return len({str(next(row[key] for key in keys if row.get(key))) for row in self.rows})


@dataclass(frozen=True)
class Sources:
    """What annotations are read with.

    Attributes:
        split: of :data:`SPLITS`.
        scenes: where scenes lie: an address with ``{scene}`` in it, or a folder of scenes; rows then have ``scene``,
            which ``vega3d train`` shows. Default: ``video: scannet/SCENE``, as the released code wants it.
        boxes: of the objects, see :func:`read_boxes`.
        proposals: boxes that something else has found, in the same form.
        labels: ``scannetv2-labels.combined.tsv``, for files without ``eval_type``.
    """

    split: str
    scenes: str | None = None
    boxes: Path | None = None
    proposals: Path | None = None
    labels: Path | None = None


class _Scenes:
    """Where the scenes of rows are."""

    def __init__(self, given: str | None) -> None:
        self.given = given
        self.problems: dict[str, str] = {}

    def of(self, row: Row) -> Made:
        """The key and value that name a row's scene."""
        name = row.id_of("scene_id")
        if self.given is None:
            return {"video": f"scannet/{name}"}
        address = self.given.replace("{scene}", name) if "{scene}" in self.given else f"{self.given.rstrip('/')}/{name}"
        if address not in self.problems:
            self.problems[address] = _scene_problem(address, name)
        if self.problems[address]:
            raise row.problem(self.problems[address])
        return {"scene": address}


def _scene_problem(address: str, name: str) -> str:
    """Why the scene at an address cannot be shown, as far as a look at it tells; nothing where it can.

    Raises:
        SceneError: a file of scenes that is none.
    """
    place, named, scene = address.partition("?")[0].partition("#")
    path = Path(place).expanduser()
    if not path.exists():
        return f"there is no {place} for the scene {name}"
    if path.is_dir():
        return "" if any(path.iterdir()) else f"the folder {place} of the scene {name} is empty"
    if path.suffix.lower() in INFO_FILES:
        read_info(path)
        try:
            check_scene(path, scene if named else None)
        except SceneError as error:
            return str(error).rstrip(".")
    return ""


def annotation_rows(benchmark: str, files: Sequence[Path], sources: Sources) -> AnnotationRows:
    """Rows of a benchmark's own annotation files.

    Args:
        benchmark: one of :data:`READERS`.
        files: of one split; for ``sqa3d`` the questions and the annotations.
        sources: what they are read with.

    Raises:
        ScoreError: an unknown benchmark or split, a file that is none, or something that this benchmark needs and was
            not given. What is wrong with single annotations is in ``left_out``.
    """
    if benchmark not in READERS:
        known = ", ".join(READERS)
        raise ScoreError(f"No annotations of {benchmark!r} are known.{near_misses(benchmark, READERS)} Known: {known}.")
    if sources.split not in SPLITS:
        raise ScoreError(f"The split {sources.split!r} is unknown; known: {', '.join(SPLITS)}.")
    found = AnnotationRows()
    given: list[Row] = []
    for file in files:
        rows, bad = read_rows(file)
        given += rows
        found.left_out += bad
    found.read = len(given) + len(found.left_out)
    for problem in READERS[benchmark](given, sources, found.rows):
        found.left_out.append(str(problem))
    return found


@dataclass
class BoxFile:
    """The boxes of a file.

    Attributes:
        boxes: centre and full size of each object, by scene and object.
        left_out: what is wrong with each that is none, by scene and object; the object None: a whole scene.
    """

    boxes: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    left_out: dict[tuple[str, str | None], RowProblem] = field(default_factory=dict)


def read_boxes(path: Path) -> BoxFile:
    """Boxes of objects by scene and object: ``{"scannet/scene0000_00": [[cx, cy, cz, dx, dy, dz], ...]}``.

    In a list the place is the object's id, as in the released ``scannet_train_gt_box.json``; ``{"12": [...]}`` in its
    place names each. A box that is none is left out, and named.

    Raises:
        ScoreError: no such file, no JSON object, or a file without a single box.
    """
    found, total = BoxFile(), 0
    for name, objects in read_json(path, ScoreError, limit=LARGEST_BOXES).items():
        scene = name.removeprefix("scannet/")
        row, boxes = Row({name: objects}, f"{path}, {name}"), found.boxes.setdefault(scene, {})
        if not isinstance(objects, list | dict):
            problem = row.problem(f"a list or an object of boxes is expected, found {type(objects).__name__}")
            found.left_out[scene, None], total = problem, total + 1
            continue
        pairs: Iterable[tuple[Any, Any]] = objects.items() if isinstance(objects, dict) else enumerate(objects)
        for key, value in pairs:
            total += 1
            try:
                boxes[str(key)] = list(row.box(str(key), value))
            except RowProblem as problem:
                found.left_out[scene, str(key)] = problem
    if found.left_out and not any(found.boxes.values()):
        first = str(next(iter(found.left_out.values()))).rstrip(".")
        raise ScoreError(f"None of the {total:,} entries of {path} is a box; the first: {first}.")
    return found


def _scanqa(given: Sequence[Row], sources: Sources, rows: list[Made]) -> Iterator[RowProblem]:
    scenes = _Scenes(sources.scenes)

    def make(row: Row) -> list[Made]:
        question, answers = row.text(*row.need("question")), row.texts(*row.need("answers"))
        metadata: Made = {"dataset": "scanQA", "question_type": "unknow"}
        if sources.split != "train":
            metadata["answers"] = list(answers)
        return [
            {
                "id": f"scanqa_{row.id_of('question_id')}_{i}",
                **scenes.of(row),
                "conversations": _turns(f"<image> {question} Answer the question simply.", answer),
                "metadata": metadata,
            }
            # To be judged, a question is asked once; all its answers count.
            for i, answer in enumerate(answers if sources.split == "train" else answers[:1])
        ]

    return _each(given, make, rows, lambda row: row.id_of("question_id"))


def _sqa3d(given: Sequence[Row], sources: Sources, rows: list[Made]) -> Iterator[RowProblem]:
    scenes = _Scenes(sources.scenes)
    named: dict[int, str] = {}
    for row in given:
        try:
            named[id(row)] = row.id_of("question_id")
        except RowProblem as problem:
            yield problem
    whole = [row for row in given if id(row) in named]
    questions = {named[id(row)]: row for row in whole if row.first("question") is not None}
    annotations = [row for row in whole if row.first("question") is None]
    if not questions or not annotations:
        raise ScoreError("SQA3D takes two files: the questions (v1_balanced_questions_*) and their annotations.")

    def make(row: Row) -> list[Made]:
        number = named[id(row)]
        if number not in questions:
            raise row.problem(f"there is no question {number} among the {len(questions):,} questions given")
        asked = questions[number]
        key, answers = row.need("answers")
        if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
            raise row.problem(f"key {key!r} must be a list of one answer")
        question, answer = asked.text(*asked.need("question")), row.text("answer", answers[0].get("answer"))
        more = asked.first("alternative_situation") if sources.split == "train" else None
        situations = [*(asked.texts(*more) if more and more[1] else ()), asked.text(*asked.need("situation"))]
        return [
            {
                "id": row.need("question_id")[1],
                **scenes.of(row),
                "conversations": _turns(
                    f"<image> {situation} {question} Answer the question using a single word or phrase.", answer
                ),
                "metadata": {"dataset": "sqa3d", "question_type": question_type(question)},
            }
            for situation in situations
        ]

    yield from _each(annotations, make, rows, lambda row: named[id(row)])
    answered = {named[id(row)] for row in annotations}
    for number, asked in questions.items():
        if number not in answered:
            yield asked.problem(f"the question {number} has no annotation")


def _scanrefer(given: Sequence[Row], sources: Sources, rows: list[Made]) -> Iterator[RowProblem]:
    scenes, boxes, kinds = _Scenes(sources.scenes), _boxes(sources.boxes, "scanrefer"), _kinds(given, sources)
    yield from boxes.left_out.values()
    places = {id(row): place for place, row in enumerate(given)}

    def make(row: Row) -> list[Made]:
        number = row.id_of("object_id")
        description = row.text(*row.need("description")).capitalize()
        return [
            {
                "id": places[id(row)],
                **scenes.of(row),
                "conversations": _turns(
                    f"<image>Identify the object according to the following description.\n{description}", "<ground>"
                ),
                "box": _box(row, boxes, number),
                "metadata": {
                    "dataset": "scanrefer",
                    "question_type": kinds(row),
                    "ann_id": row.need("ann_id")[1],
                    "object_id": row.need("object_id")[1],
                },
            }
        ]

    yield from _each(given, make, rows, _reference)


def _multi3drefer(given: Sequence[Row], sources: Sources, rows: list[Made]) -> Iterator[RowProblem]:
    scenes, boxes = _Scenes(sources.scenes), _boxes(sources.boxes, "multi3drefer")
    yield from boxes.left_out.values()
    places = {id(row): place for place, row in enumerate(given)}

    def make(row: Row) -> list[Made]:
        key, numbers = row.need("object_ids")
        if not isinstance(numbers, list):
            raise row.problem(f"key {key!r} must be a list of objects")
        description = row.text(*row.need("description")).capitalize()
        return [
            {
                "id": places[id(row)],
                **scenes.of(row),
                "conversations": _turns(
                    f"<image>Identify the object according to the following description.\n{description}\n"
                    "There may be no corresponding object, or there may be one or more objects.",
                    "<ground>",
                ),
                "box": [_box(row, boxes, str(number)) for number in numbers],
                "metadata": {
                    "dataset": "multi3drefer",
                    "question_type": row.text(*row.need("eval_type")),
                    "ann_id": row.need("ann_id")[1],
                    "object_id": numbers,
                },
            }
        ]

    yield from _each(given, make, rows, lambda row: "|".join(map(row.id_of, ("scene_id", "ann_id", "description"))))


def _scan2cap(given: Sequence[Row], sources: Sources, rows: list[Made]) -> Iterator[RowProblem]:
    scenes, boxes, kinds = _Scenes(sources.scenes), _boxes(sources.boxes, "scan2cap"), _kinds(given, sources)
    judged = sources.split != "train"
    yield from boxes.left_out.values()
    proposed = _boxes(sources.proposals, "scan2cap of another split than train", "--proposals") if judged else BoxFile()
    yield from proposed.left_out.values()
    places = {id(row): place for place, row in enumerate(given)}
    captions: defaultdict[str, list[str]] = defaultdict(list)
    firsts: list[Row] = []
    for row in given:
        try:
            key, text = _object(row), row.text(*row.need("description"))
        except RowProblem as problem:
            yield problem
            continue
        if not judged or key not in captions:
            firsts.append(row)
        captions[key].append(text)

    def make(row: Row) -> list[Made]:
        truth = _box(row, boxes, row.id_of("object_id"))
        made: Made = {
            "id": places[id(row)],
            **scenes.of(row),
            "conversations": _turns(
                "<image> Given an object located at <coord> , describe the object in detail.",
                row.text(*row.need("description")).capitalize(),
            ),
            "box_input": _proposal(truth, proposed.boxes.get(row.id_of("scene_id"), {})) if judged else truth,
            "gt_box": truth,
            "metadata": {
                "dataset": "scan2cap",
                "question_type": kinds(row),
                "ann_id": row.need("ann_id")[1],
                "object_id": row.need("object_id")[1],
            },
        }
        return [{**made, "annotations": captions[_object(row)]} if judged else made]

    yield from _each(firsts, make, rows, _object if judged else _reference)


#: Benchmarks by name, as ``vega3d score`` calls them.
READERS: Mapping[str, Callable[[Sequence[Row], Sources, list[Made]], Iterator[RowProblem]]] = {
    "scanqa": _scanqa,
    "sqa3d": _sqa3d,
    "scanrefer": _scanrefer,
    "multi3drefer": _multi3drefer,
    "scan2cap": _scan2cap,
}


def _each(
    given: Sequence[Row], make: Callable[[Row], list[Made]], rows: list[Made], name: Callable[[Row], str]
) -> Iterator[RowProblem]:
    """Rows of each annotation; the same one twice counts once."""
    seen: Counter[str] = Counter()
    for row in given:
        try:
            key = name(row)
            seen[key] += 1
            if seen[key] > 1:
                raise row.problem("it is there twice; the first counts")
            rows += make(row)
        except RowProblem as problem:
            yield problem


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"value": question, "from": "human"}, {"value": answer, "from": "gpt"}]


def _reference(row: Row) -> str:
    return "|".join(map(row.id_of, ("scene_id", "object_id", "ann_id")))


def _object(row: Row) -> str:
    return "|".join(map(row.id_of, ("scene_id", "object_id", "object_name")))


def _boxes(path: Path | None, what: str, option: str = "--boxes") -> BoxFile:
    if path is None:
        raise ScoreError(f"The rows of {what} hold boxes: name their file, {option} FILE.")
    return read_boxes(path)


def _box(row: Row, found: BoxFile, number: str) -> list[float]:
    scene = row.id_of("scene_id")
    if scene not in found.boxes:
        raise row.problem(f"the file of boxes has no scene {scene}")
    if (scene, number) in found.left_out or (scene, None) in found.left_out:
        raise row.problem(f"the box of its object {number} of {scene} was left out")
    if number not in found.boxes[scene]:
        raise row.problem(f"the file of boxes has no object {number} of {scene}")
    return found.boxes[scene][number]


def _kinds(given: Sequence[Row], sources: Sources) -> Callable[[Row], str]:
    """``unique`` or ``multiple`` of a row: its own ``eval_type``, else by ScanNet's table of labels."""
    own = [row.first("eval_type") is not None for row in given]
    if sources.labels is None and not any(own):
        raise ScoreError(
            "Whether an object is the only one of its class is not in these rows (no key 'eval_type'): name ScanNet's "
            "scannetv2-labels.combined.tsv, --labels FILE."
        )
    if sources.labels is None or all(own):
        return lambda row: row.text(*row.need("eval_type"))
    found = kinds_of_rows(given, read_label_ids(sources.labels))
    by_row = {id(row): kind for row, kind in zip(given, found, strict=True)}

    def kind(row: Row) -> str:
        found = by_row[id(row)]
        if isinstance(found, RowProblem):
            raise found
        return found

    return kind


def _proposal(truth: list[float], proposals: Mapping[str, list[float]]) -> list[float] | None:
    """The proposal that overlaps most, None where none does by :data:`OVERLAP`."""
    if not proposals:
        return None
    boxes = list(proposals.values())
    overlaps = box_iou(bounds([truth]), bounds(boxes))[0]
    best = int(overlaps.argmax())
    return boxes[best] if overlaps[best] >= OVERLAP else None
