"""Studies of many fits, each with its *record*: all that is known of one, JSON written the moment it is known.

    weights/<name>.safetensors
    results/<name>.json

A record says what it was computed from: digests of the training's settings and of the evaluation's, and the sha256 of
the weights. What does not fit together is an error that says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from helpers import artifacts, workers
from helpers.config import Study
from helpers.shelf import StudyShelf

log = logging.getLogger(__name__)


class Member(Protocol):
    """One fit of a study."""

    @property
    def name(self) -> str:
        """Its path in every folder."""

    def wanted(self) -> dict[str, Any]:
        """What a record of it has to be computed from, but for the weights: ``settings`` is the training's digest."""


class RecordShelf(StudyShelf):
    """A shelf with the weights and the record of each fit."""

    entries: ClassVar[frozenset[str]]
    """What a record holds, ``name`` and ``computed_from`` among it."""

    def weights_path(self, member: Member) -> Path:
        return self.checked(self.weights / f"{member.name}.safetensors")

    def record_path(self, member: Member) -> Path:
        return self.checked(self.results / f"{member.name}.json")

    def record(self, member: Member) -> dict[str, Any] | None:
        """What is known of ``member``, or None. Raises `ArtifactError` for what is damaged, of other settings, or of
        other weights than those beside it."""
        path = self.record_path(member)
        if not path.exists():
            return None
        record = artifacts.load_json(path)
        if not isinstance(record, dict) or set(record) != self.entries or record["name"] != member.name:
            raise artifacts.ArtifactError(
                f"{path} is not the record of {member.name}: it was edited or swapped; restore it, or delete it and "
                "run again"
            )
        made, wanted = record["computed_from"], member.wanted()
        if made["settings"] != wanted["settings"]:
            raise artifacts.ArtifactError(
                f"the results of {member.name} are of other training settings; RETRAIN=True with another OUT trains "
                "with these, or take back the changes"
            )
        kept = self.weights_path(member)
        same = not kept.exists() or artifacts.sha256(kept) == made["weights"]
        if not same or {name: made.get(name) for name in wanted} != wanted:
            raise artifacts.ArtifactError(
                f"the results of {member.name} were measured in another way or of other weights; REEVALUATE=True "
                "measures anew, or take back the changes"
            )
        return record

    def keep(self, record: Mapping[str, Any]) -> None:
        artifacts.save_json(self.results / f"{record['name']}.json", record)

    def take(self, source: RecordShelf, records: Iterable[str] = (), weights: Iterable[Member] = ()) -> None:
        """Copy from ``source`` the records of these names, and the weights of these members."""
        for name in records:
            artifacts.atomic_write(self.results / f"{name}.json", (source.results / f"{name}.json").read_bytes())
        for member in weights:
            artifacts.atomic_write(self.weights_path(member), source.weights_path(member).read_bytes())

    def all_of(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        """The records of ``members``. Raises `ArtifactError` where one is missing."""
        records = {member.name: self.record(member) for member in members}
        if missing := [name for name, record in records.items() if record is None]:
            raise artifacts.ArtifactError(
                f"no results of {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} are in {self.results}; "
                "RETRAIN=True makes them"
            )
        return list(records.values())


S = TypeVar("S", bound=RecordShelf)
M = TypeVar("M", bound=Member)


def choose_shelf(kind: type[S], study: Study, working_folder: Path) -> S:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    if study.retrain or (study.out and (working_folder / "results").is_dir()):
        return kind(working_folder)
    return kind()


def collect(
    study: Study,
    shelf: S,
    members: Sequence[M],
    run: Callable[[M], None],
    measure: Callable[[M, S], dict[str, Any]],
    working_folder: Path,
    prepare: Callable[[Sequence[M], Executor], None] | None = None,
) -> list[dict[str, Any]]:
    """The records of ``members`` on ``shelf``: with ``REEVALUATE`` `reevaluate`d, with ``RETRAIN`` what is missing
    made by ``run`` in the working folder, ``workers`` of them side by side, after ``prepare`` made what several of them
    share. Raises `ArtifactError` for a record that is missing, damaged or stale."""
    if study.reevaluate:
        shelf = reevaluate(shelf, members, measure, working_folder)
    if study.retrain:
        artifacts.ensure_writable(working_folder)
        missing = [member for member in members if shelf.record(member) is None]
        with workers.executor(study.workers) as executor:
            if prepare:
                prepare(missing, executor)
            for member, done in [(member, executor.submit(run, member)) for member in missing]:
                done.result()
                log.info("%s is done", member.name)
    return shelf.all_of(members)


def reevaluate(shelf: S, members: Sequence[M], measure: Callable[[M, S], dict[str, Any]], working_folder: Path) -> S:
    """A shelf with the records of all weights of ``shelf`` made anew: the same one, or where that is the shipped one,
    ``reevaluated`` in the working folder. Records of which there are no weights are kept as they are."""
    artifacts.ensure_writable(working_folder)
    new = type(shelf)(working_folder / "reevaluated" if shelf.shipped else working_folder)
    kept = 0
    for member in members:
        if shelf.weights_path(member).exists():
            new.keep(measure(member, shelf))
        elif shelf.record_path(member).exists():
            kept += 1
            new.keep(_as_it_is(member, shelf))
    if kept:
        log.warning("%d records were kept as they are: their weights are not there", kept)
    return new


def _as_it_is(member: Member, shelf: RecordShelf) -> dict[str, Any]:
    """The record of a fit whose weights are not on ``shelf``. Raises `ArtifactError` if it would have to be another."""
    try:
        return shelf.record(member)
    except artifacts.ArtifactError as error:
        raise artifacts.ArtifactError(
            f"{error}. But the weights of {member.name} are not in {shelf.weights}: RETRAIN=True trains them, or take "
            "GROUPS and SEEDS of which there are weights"
        ) from None


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """``rows`` as one list a key, numbers `rounded`; null where a row has nothing to say."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [rounded(row.get(name)) for row in rows] for name in names}


def rounded(value: Any) -> Any:
    """Six significant digits; null where there is no number."""
    return None if value != value else float(f"{value:.6g}") if isinstance(value, float) else value
