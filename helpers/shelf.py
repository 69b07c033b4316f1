"""Where the weights and results of a study lie, and how a new set takes the place of what is shipped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from helpers import artifacts, config


class StudyShelf:
    """The shipped folders of a study (checksums enforced), or those in a working folder ``out``. A study names itself
    and adds the paths that it has."""

    study: ClassVar[str]

    def __init__(self, out: Path | None = None):
        self.shipped = out is None
        self.weights = config.ROOT / "weights" / self.study if out is None else out / "weights"
        self.results = config.ROOT / "results" / self.study if out is None else out / "results"

    def checked(self, path: Path) -> Path:
        """``path``; of a shipped file only if its manifest vouches for the bytes."""
        return artifacts.check_file(path) if self.shipped and path.exists() else path


S = TypeVar("S", bound=StudyShelf)


def refuse_loss(shipped: StudyShelf, names: Iterable[str]) -> None:
    """Raises `ArtifactError` if a shipped record is not among ``names``, those of a new set: it would be lost."""
    there = [name.removesuffix(".json") for name in artifacts.listed(shipped.results) if name.endswith(".json")]
    if lost := sorted(set(there) - set(names)):
        raise artifacts.ArtifactError(
            f"{lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''} would be lost, which {shipped.results} has; "
            "name the presets of all that is shipped, and train what is missing with RETRAIN=True"
        )


@contextmanager
def shipping(kind: type[S], made: Mapping[str, Any]) -> Iterator[S]:
    """An empty shelf to assemble a new set on, beside the shipped one: whole, and given manifests that say how it was
    ``made``, it takes that one's place. If anything fails before, nothing has changed."""
    (config.ROOT / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.ROOT / "results", prefix=".new-") as temporary:
        new, shipped = kind(Path(temporary)), kind()
        yield new
        artifacts.write_manifest(new.weights, made)
        artifacts.write_manifest(new.results, {"weights": artifacts.sha256(new.weights / artifacts.MANIFEST), **made})
        artifacts.replace_folder(new.weights, shipped.weights)
        artifacts.replace_folder(new.results, shipped.results)
