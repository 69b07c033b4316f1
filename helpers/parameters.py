"""What a notebook can be given, read from the file and checked before anything is executed.

    accepted = signature(path).accept({"SEED": 3, "few_shot_train_percent": 0.02, "train.epochs": 5})

A name is one of the notebook's parameters, in capitals or not; the first words of just one of them (``TARGET`` of
``TARGET_IDX``); or any other setting of its study by its dotted name (``*`` for all): these go into ``OVERRIDES``. The
study is the schema that the notebook itself checks its parameters by, ``read_parameters(globals(), ToyShapesStudy)``,
so both agree. A notebook without one is checked by its annotations.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from . import notebooks
from .config import ConfigError, Study, read_parameters, suggest

OVERRIDES = "OVERRIDES"

KINDS = {"bool": bool, "int": int, "float": (int, float), "str": str, "list": list, "dict": dict}


@dataclass(frozen=True)
class Signature:
    """The parameters of ``notebook`` with their defaults and annotations, and the study that they are settings of."""

    notebook: str
    defaults: Mapping[str, Any]
    annotations: Mapping[str, str]
    schema: type[Study] | None = None

    def accept(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` as papermill is to inject it. Raises `ConfigError` for an unknown name (near misses listed), a
        value of the wrong type or none of the choices, or what is given twice."""
        accepted: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        for spelt, value in given.items():
            name, dotted = self.place(spelt)
            target, key = (overrides, dotted) if dotted else (accepted, name)
            if key in target:
                raise ConfigError(f"{self.notebook}: {spelt} is given twice")
            target[key] = _plain(value, f"{self.notebook}: {spelt}")
        if overrides:
            before = accepted.get(OVERRIDES, self.defaults[OVERRIDES])
            accepted[OVERRIDES] = {**(before if isinstance(before, dict) else {}), **overrides}
        try:
            self._check({**self.defaults, **accepted})
        except ConfigError as error:
            raise ConfigError(f"{self.notebook}: {error}") from None
        return accepted

    def place(self, spelt: str) -> tuple[str, str]:
        """(parameter, "") or (``OVERRIDES``, dotted name): where the value of a name goes."""
        plain = spelt.replace("-", "_")
        for name in (plain, plain.upper()):
            if name in self.defaults:
                return name, ""
        known = list(self.defaults)
        if self.schema and OVERRIDES in self.defaults:
            from .options import fields

            settings = fields(self.schema)
            if plain.lower() in settings or "*" in plain:
                return OVERRIDES, plain.lower()
            known += settings
        beginning = f"{plain.upper()}_"
        if len(meant := [name for name in self.defaults if name.startswith(beginning)]) == 1:
            return meant[0], ""
        raise ConfigError(f"{self.notebook}: unknown parameter {spelt}: {_suggest(spelt, known)}")

    def cut_short(self, given: Iterable[str]) -> list[str]:
        """A line for each name of ``given`` that only begins a parameter's, saying whose."""
        meant = {spelt: self.place(spelt)[0] for spelt in given}
        return [
            f"{self.notebook}: {spelt} is taken for {name}"
            for spelt, name in meant.items()
            if name.startswith(f"{spelt.replace('-', '_').upper()}_")
        ]

    def _check(self, values: Mapping[str, Any]) -> None:
        if self.schema:
            read_parameters(values, self.schema)
        else:
            for name, value in values.items():
                _check_kind(name, value, self.annotations.get(name, ""), self.defaults[name])


def signature(notebook: Path) -> Signature:
    """What ``notebook`` can be given. Raises `ConfigError` where its cell of parameters holds anything but literals."""
    content = notebooks.read(notebook)
    defaults, annotations = {}, {}
    for cell in notebooks.tagged(content, "parameters"):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                name, annotations[node.target.id] = node.target.id, ast.unparse(node.annotation)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            else:
                continue
            try:
                defaults[name] = _plain(ast.literal_eval(node.value), name)
            except ValueError:
                raise ConfigError(f"{notebook.name}: the parameter {name} is no literal") from None
    return Signature(notebook.stem, defaults, annotations, _schema(content))


def _schema(content: Any) -> type[Study] | None:
    """The second argument of ``read_parameters(globals(), ...)``, imported as the same cell imports it."""
    for cell in content.cells:
        if cell.cell_type != "code" or "read_parameters(globals()" not in cell.source:
            continue
        tree, homes = ast.parse(cell.source), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                homes |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called == "read_parameters" and len(node.args) == 2 and isinstance(node.args[1], ast.Name):
                module, name = homes.get(node.args[1].id, ("", ""))
                return getattr(import_module(module), name) if module.startswith("helpers.") else None
    return None


def _check_kind(name: str, value: Any, annotation: str, default: Any) -> None:
    optional = default is None or "None" in annotation or "Optional" in annotation
    if value is None and optional:
        return
    if annotation.startswith("Literal["):
        choices = ast.literal_eval("(" + annotation.removeprefix("Literal[")[:-1] + ",)")
        if value not in choices:
            raise ConfigError(f"{name} cannot be {value!r}: {suggest(str(value), map(str, choices))}")
        return
    wanted = annotation.split("|")[0].split("[")[0].strip() or type(default).__name__
    kind = KINDS.get(wanted)
    if kind and (not isinstance(value, kind) or isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} must be {wanted}, not {value!r}")


def _suggest(name: str, known: list[str]) -> str:
    """Near misses, whatever their case."""
    lower = {k.lower(): k for k in reversed(known)}  # a parameter wins over the setting behind it
    near = suggest(name.lower(), lower)
    if not near.startswith("did you mean"):
        return suggest("", [k for k in known if k.isupper()] or known)
    words = near.removeprefix("did you mean ").removesuffix("?").split(" or ")
    return f"did you mean {' or '.join(lower[word] for word in words)}?"


def _plain(value: Any, what: str) -> Any:
    """``value`` with lists for tuples: as JSON, YAML and a notebook can hold it."""
    if isinstance(value, tuple | list):
        return [_plain(part, what) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part, what) for key, part in value.items()}
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} cannot be {value!r}: it has to be text, a number, a list or a dict") from None
    return value
