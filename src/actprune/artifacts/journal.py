"""The journal of an unfinished run: every stage's result is a file of its own, whole or not there at all.

    request.json              what the run was asked for: only the same run goes on from here
    statistics.safetensors    and so on, one file a stage, in the kinds below

What goes on is always what was read back from the file, so that a run that was interrupted and one that was not see
the very same values, and end with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import safe_open

from actprune.allocation.correct import Corrected, Round
from actprune.artifacts.files import new_file, read_text, sync, unreadable
from actprune.artifacts.folder import PLAN_BYTES
from actprune.artifacts.weights import read_weights, write_weights
from actprune.errors import ActpruneError, ArtifactError
from actprune.guidance.guide import GroupGuide
from actprune.plan import Plan
from actprune.rewrite import Rewrite
from actprune.shards import open_weights, write_tensors
from actprune.stats.statistics import Stats

SCHEMA = "actprune.journal/1"

REQUEST = "request.json"

SUFFIX = ".unfinished"
"""Of the folder beside the run folder that is to be."""

ANEW = "start the run anew, without --resume (resume=False)"

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How results of one kind are written to a file and read back."""

    suffix: str
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]


@dataclass(eq=False)
class Journal:
    """Where the stages of a run are kept until it is finished.

    Attributes:
        folder: where they are.
        resume: whether to go on from what is there; else it is removed when the run begins.
    """

    folder: Path
    resume: bool

    def begin(self, request: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it.

        Raises:
            ArtifactError: what is there belongs to another run, or the folder can't be written.
        """
        asked = json.loads(json.dumps({"schema": SCHEMA, **request}))
        path = self.folder / REQUEST
        if self.resume and path.exists():
            _check_same(_json(path), asked, path)
            return
        self.remove()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with new_file(path) as scratch:
                scratch.write_text(json.dumps(asked, indent=1), "utf-8")
        except OSError as error:
            raise ArtifactError(
                "The stages of the run can't be kept.",
                expected="a folder that can be written",
                got=error.strerror or str(error),
                where=str(self.folder),
                hint="choose another place for the run folder",
            ) from error

    def path(self, name: str, kind: Kind[Any]) -> Path:
        """The file of a stage."""
        return self.folder / f"{name}{kind.suffix}"

    def keep(self, name: str, kind: Kind[T], make: Callable[[], T]) -> T:
        """The result of a stage: as an earlier run left it, else made and written now."""
        path = self.path(name, kind)
        if not path.exists():
            with new_file(path) as scratch:
                kind.write(scratch, make())
        try:
            return kind.read(path)
        except ActpruneError as error:
            raise unreadable(path, "what a stage of this run wrote", error.got or error.problem, ANEW) from error
        except Exception as error:  # whatever foreign bytes lead to
            raise unreadable(
                path, "what a stage of this run wrote", f"{type(error).__name__}: {error}", ANEW
            ) from error

    def remove(self) -> None:
        """Delete the files of a journal by their endings, and the folder if nothing else is in it."""
        if not self.folder.is_dir() or self.folder.is_symlink():
            return
        for path in self.folder.iterdir():
            if path.suffix in (".json", ".safetensors") or path.name.startswith(".actprune-"):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
            sync(self.folder.parent)


def journal_of(folder: str | Path, resume: bool) -> Journal:
    """The journal beside a run folder."""
    path = Path(folder).absolute()
    return Journal(path.with_name(path.name + SUFFIX), resume)


def _check_same(found: Any, asked: Mapping[str, Any], path: Path) -> None:
    known = found if isinstance(found, dict) else {}
    for key, value in asked.items():
        before = known.get(key)
        if isinstance(value, dict) and isinstance(before, dict):  # what of it differs
            before, value = _differing(before, value), _differing(value, before)
        if before != value:
            raise ArtifactError(
                "The unfinished run is another one.",
                expected=f"{key}={json.dumps(before)[:100]}, as when it began",
                got=f"{key}={json.dumps(value)[:100]}",
                where=str(path),
                hint=f"give the same model, data and settings as then, or {ANEW}",
            )


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key not in other or other[key] != value}


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path, PLAN_BYTES, ANEW))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "JSON", str(error), ANEW) from error


# ---- the kinds of results


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), "utf-8")  # numbers that are not finite as Python writes and reads them


def _write_guide(path: Path, groups: Mapping[str, GroupGuide]) -> None:
    _write_json(path, {name: asdict(own) for name, own in groups.items()})


def _read_guide(path: Path) -> Mapping[str, GroupGuide]:
    def group(data: dict[str, Any]) -> GroupGuide:
        return GroupGuide(
            orders={name: tuple(order) for name, order in data["orders"].items()},
            scores=tuple(data["scores"]),
            curve=tuple(data["curve"]),
            beta=None if data["beta"] is None else tuple(data["beta"]),
            natural=data["natural"],
            path_support={int(k): tuple(units) for k, units in data["path_support"].items()},
        )

    return {name: group(data) for name, data in _json(path).items()}


def _write_decided(path: Path, decided: Corrected) -> None:
    rounds = [asdict(one) for one in decided.rounds]
    _write_json(path, {"plan": decided.plan.to_json(), "metric": decided.metric, "rounds": rounds})


def _read_decided(path: Path) -> Corrected:
    data = _json(path)
    return Corrected(Plan.from_json(data["plan"], str(path)), data["metric"], tuple(Round(**r) for r in data["rounds"]))


def _write_rewrite(path: Path, rewrite: Rewrite) -> None:
    write_tensors(path, rewrite.tensors, {"record": json.dumps(rewrite.record, default=float)})


def _read_rewrite(path: Path) -> Rewrite:
    with safe_open(path, framework="pt") as file:
        record = json.loads((file.metadata() or {})["record"])
    return Rewrite(open_weights(path), record)


Trained = tuple[Mapping[str, Any], Any]
"""The state dict of a network after a step, and what is to be said of the step as JSON values."""


def _write_trained(path: Path, trained: Trained) -> None:
    write_weights(path, trained[0], {"record": json.dumps(trained[1])})


def _read_trained(path: Path) -> Trained:
    weights = read_weights(path, ANEW)
    return weights.state(), json.loads(weights.metadata["record"])


NUMBER = Kind[float](".json", _write_json, _json)
STATISTICS = Kind[Stats](".safetensors", lambda path, stats: stats.save(path), Stats.load)
GUIDE = Kind[Mapping[str, GroupGuide]](".json", _write_guide, _read_guide)
DECIDED = Kind[Corrected](".json", _write_decided, _read_decided)
REWRITE = Kind[Rewrite](".safetensors", _write_rewrite, _read_rewrite)
TRAINED = Kind[Trained](".safetensors", _write_trained, _read_trained)
