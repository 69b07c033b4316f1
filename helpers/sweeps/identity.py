"""What the outcome of a run depends on, as digests: change any of it, and it is another run."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import artifacts, config, notebooks
from ..parameters import Signature

WHERE_ONLY = frozenset({"OUT"})  # parameters that say where things go, and nothing about them

PACKAGE = "helpers"

READING = ("published(", "study.larger(", "shipped_control(")
"""Calls in notebooks that show what is shipped beside what a run trains."""


def identity(notebook: Path, signature: Signature, accepted: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of a run of ``notebook`` with the ``accepted`` parameters: its name, they and its `code`.

    A parameter that is given the value it has anyway makes no other run, and neither does a change of the prose.
    """
    return identities(notebook, signature)(accepted)


def identities(notebook: Path, signature: Signature) -> Callable[[Mapping[str, Any]], str]:
    """`identity` of many runs of ``notebook`` as it is now."""
    computes, shipped = code(notebook), _shipped(notebook)
    cells = "\n".join(cell.source for cell in notebooks.read(notebook).cells if cell.cell_type == "code")
    anyway = any(call in cells for call in READING)

    def identify(accepted: Mapping[str, Any]) -> str:
        values = {name: value for name, value in {**signature.defaults, **accepted}.items() if name not in WHERE_ONLY}
        reads = anyway or not values.get("RETRAIN") or bool(values.get("CONTINUE_SHIPPED"))
        return config.digest([notebook.stem, values, computes, shipped if reads else None])

    return identify


def code(notebook: Path) -> str:
    """The digest of what computes: the notebook's cells of code, every module of the helpers that they reach through
    imports, wherever in it these stand, and every ``data_configs/*.yaml``."""
    cells = [cell.source for cell in notebooks.read(notebook).cells if cell.cell_type == "code"]
    files = [*reached(cells), *sorted((config.ROOT / "data_configs").glob("*.yaml"))]
    known = {path.relative_to(config.ROOT).as_posix(): _file(*_version(path)) for path in files}
    return config.digest([cells, known])


def reached(sources: Iterable[str]) -> list[Path]:
    """The modules of the helpers that Python ``sources`` import, directly or through one another."""
    found: dict[Path, None] = {}
    todo = [path for source in sources for path in _imports(ast.parse(_python(source)), ())]
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = None
            todo += _of_module(*_version(path))
    return sorted(found)


def _shipped(notebook: Path) -> dict[str, str]:
    """The digests of the manifests of shipped weights and results, which a run that does not train reads. The bootstrap
    cell names the study: ``STUDY, NEEDS = "toyshapes", "..."``."""
    source = "\n".join(cell.source for cell in notebooks.tagged(notebooks.read(notebook), "bootstrap"))
    studies = re.findall(r'^STUDY, NEEDS = "(\w+)"', source, re.MULTILINE)
    files = [config.ROOT / kind / study / artifacts.MANIFEST for study in studies for kind in artifacts.KINDS]
    return {path.relative_to(config.ROOT).as_posix(): _file(*_version(path)) for path in files if path.exists()}


def _python(source: str) -> str:
    """A cell without IPython's own lines."""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def _version(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)
def _file(path: Path, *version: int) -> str:
    return artifacts.sha256(path)


@lru_cache(maxsize=4096)
def _of_module(path: Path, *version: int) -> tuple[Path, ...]:
    if path.suffix != ".py":
        return ()
    text, package = path.read_text(), path.relative_to(config.ROOT).parts[:-1]
    beside = [file for file in path.parent.iterdir() if file.suffix in (".j2", ".js") and file.name in text]
    return (*_imports(ast.parse(text), package), *beside)


def _imports(tree: ast.AST, package: tuple[str, ...]) -> set[Path]:
    """The modules that are imported in ``tree``, which stands in ``package``, with the packages around them."""
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            start += tuple(node.module.split(".")) if node.module else ()
            names |= {start, *((*start, alias.name) for alias in node.names)}
    found = set()
    for name in names:
        for end in range(1, len(name) + 1) if name[:1] == (PACKAGE,) else ():
            stem = config.ROOT.joinpath(*name[:end])
            found |= {path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()}
    return found
