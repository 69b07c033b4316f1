"""Typed settings: presets, overrides by dotted name, notebook parameters, and errors that name the near misses."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parents[1]

LISTED = 14  # names in an error message, at most

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(strict=False)]
"""A tuple that is also read from the lists that YAML, JSON and papermill give."""


class PlainError(Exception):
    """Base of errors that are meant for the person at the notebook: IPython shows one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Sightline: {self}"]


class ConfigError(PlainError, ValueError):
    """A setting that does not exist or cannot have the value given."""


class Settings(BaseModel):
    """Base of every settings object: frozen, strictly typed, refuses names it does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with values replaced by dotted name: ``override({"training.epochs": 3})``; ``*`` stands for every name
        at its place: ``"group.*.training.epochs"``.

        Raises `ConfigError` for an unknown name (near misses listed) or a value of the wrong type.
        """
        values = self.model_dump()
        for dotted, value in changes.items():
            for *parents, leaf in _paths(self, dotted):
                node = values
                for parent in parents:
                    node = node[parent]
                node[leaf] = value.model_dump() if isinstance(value, BaseModel) else value
        return parse(type(self), values)

    def digest(self) -> str:
        """12 hexadecimal digits that change with any value."""
        return digest(self.model_dump(mode="json"))


class Study(Settings):
    """What every notebook takes. A study adds its own fields; those that hold no settings object are parameters too."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "quick": {}}
    of_this_run: ClassVar[frozenset[str]] = frozenset({"retrain", "reevaluate", "device", "out"})
    """Fields that say how and where to run, not what comes out: no part of the provenance."""

    retrain: bool = Field(False, description="train what is missing instead of reading shipped weights")
    reevaluate: bool = Field(False, description="recompute the results from the weights")
    preset: str = Field("paper", description="a named set of overrides")
    seed: int = Field(0, ge=0, description="the first of the seeds used")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    out: str = Field("", description="folder of new weights and results, from the repository's; empty: runs/<study>")

    def provenance(self) -> dict[str, Any]:
        """The settings that results come from, as JSON for a manifest."""
        return self.model_dump(mode="json", exclude=set(self.of_this_run))

    def out_folder(self, study: str) -> Path:
        """``out``, or ``runs/<study>``: in the repository unless absolute, whatever folder a kernel was started in."""
        return ROOT / Path(self.out or f"runs/{study}").expanduser()


def digest(value: Any) -> str:
    """12 hexadecimal digits of the canonical JSON of ``value``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def suggest(name: str, known: Iterable[str]) -> str:
    """``"unknown; did you mean ...?"`` for a misspelt name, or the list of what there is."""
    if not (known := sorted(known)):
        return "there are none"
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    more = f", ... ({len(known)} in all)" if len(known) > LISTED else ""
    return f"there are: {', '.join(known[:LISTED])}{more}"


def literal(text: str) -> Any:
    """``text`` as a Python literal, or else as it stands: the values of command lines."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # what `ast` says of odd text
        return text


def parse(schema: type[T], values: Mapping[str, Any]) -> T:
    """``schema(**values)`` with pydantic's report as one readable `ConfigError`."""
    try:
        return schema(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, schema) for e in error.errors())) from None


def read_parameters(namespace: Mapping[str, Any], schema: type[T]) -> T:
    """A notebook's parameters as settings: ``settings = read_parameters(globals(), ToyShapesStudy)``.

    Every upper-case name of ``namespace`` has to be a parameter of ``schema`` (papermill merely warns of one that is
    not). In order, later ones win: the schema's defaults, the preset, the parameters that are not None, ``OVERRIDES``.
    Raises `ConfigError` listing every unknown name, preset or wrong value.
    """
    given = {name: value for name, value in namespace.items() if name.isupper() and name[0].isalpha()}
    for name in ("STUDY", "NEEDS"):  # the bootstrap cell's
        given.pop(name, None)
    overrides = given.pop("OVERRIDES", {})
    known = {name.upper(): name for name in _parameters(schema)}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError("; ".join(f"unknown parameter {n}: {suggest(n, [*known, 'OVERRIDES'])}" for n in unknown))
    if not isinstance(overrides, dict):
        raise ConfigError(f"OVERRIDES must be a dict of dotted names, not {overrides!r}")

    parameters = {known[name]: value for name, value in given.items() if value is not None}
    preset = parse(schema, parameters).preset  # a wrong type is reported before the preset is mixed in
    if preset not in schema.presets:
        raise ConfigError(f"unknown PRESET {preset!r}: {suggest(preset, schema.presets)}")
    return schema().override({**schema.presets[preset], **parameters, **overrides})


@lru_cache
def data_config(name: str) -> dict[str, Any]:
    """``data_configs/<name>.yaml``: everything about a data set. Treat as read-only."""
    folder = ROOT / "data_configs"
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"no data set {name!r}: {suggest(name, [p.stem for p in folder.glob('*.yaml')])}")
    return yaml.safe_load(path.read_text())


def _parameters(schema: type[Study]) -> list[str]:
    """The fields that a notebook may set by their upper-case names: all but nested settings."""
    defaults = schema()
    return [name for name in schema.model_fields if not isinstance(getattr(defaults, name), BaseModel)]


def _paths(settings: BaseModel, dotted: str) -> list[tuple[str, ...]]:
    """The settings that a dotted name means, each as the names on the way to it."""
    found: list[tuple[tuple[str, ...], Any]] = [((), settings)]
    for name in dotted.split("."):
        step = []
        for path, node in found:
            names = list(type(node).model_fields) if isinstance(node, BaseModel) else []
            if name != "*" and name not in names:
                inside = f" in {'.'.join(path)!r}" if path else ""
                raise ConfigError(f"unknown setting {dotted!r}: no {name!r}{inside}; {suggest(name, names)}")
            step += [((*path, n), getattr(node, n)) for n in (names if name == "*" else [name])]
        found = step
    return [path for path, _ in found]


def _explain(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or schema.__name__
    if error["type"] == "extra_forbidden":
        *parents, name = error["loc"]
        for parent in parents:  # settings within settings, which may be None
            kind = schema.model_fields[parent].annotation
            schema = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
        return f"unknown setting {where!r}: {suggest(name, schema.model_fields)}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"
