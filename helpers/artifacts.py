"""Weights and results on disk: atomic writes, safetensors, JSON, checksums, provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from helpers.config import PlainError

if TYPE_CHECKING:  # files are read and written by much that computes nothing, and torch takes seconds to import
    import torch
    from torch import Tensor


class ArtifactError(PlainError, RuntimeError):
    """A file that is missing, damaged, swapped or stale. The message names it and the remedy."""


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write all or nothing: a reader, or a run that is cut off, never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits that change with any value of a ``state_dict()``."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def save_json(path: Path, value: Any) -> None:
    """JSON that diffs well: sorted keys, one entry a line, lists of numbers on one line."""
    atomic_write(path, _pretty(value) + "\n")


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is not there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        remedy = f"restore it with `git checkout -- {path}`, or delete it and run again"
        raise ArtifactError(f"{path} is damaged ({error}); {remedy}") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """A safetensors file; ``metadata`` is kept as JSON."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(tensors, {"sightline": json.dumps(metadata or {}, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a safetensors file. Raises `ArtifactError` if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("sightline", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except FileNotFoundError:
        raise ArtifactError(f"{path} is not there") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        remedy = f"restore it with `git checkout -- {path}`, or delete it and run again"
        raise ArtifactError(f"{path} is damaged ({error}); {remedy}") from None


def ensure_writable(folder: Path) -> None:
    """Make ``folder`` and prove that files can be written there. Raises `ArtifactError` if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtifactError(f"cannot write to {folder} ({error.strerror}); choose another folder with OUT") from None


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16; vectors (biases, batch-norm statistics) and scalars as they are."""
    return {k: v.half() if v.is_floating_point() and v.ndim >= 2 else v for k, v in state.items()}


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict``, strictly, casting to the model's own types."""
    own = model.state_dict()
    model.load_state_dict({k: v.to(own[k].dtype) if k in own else v for k, v in state.items()})


# -------------------------------------------------------------------------------------------------- manifests
# weights/<study>/manifest.json and results/<study>/manifest.json name every shipped file with its size, its sha256 and
# what it was made from. Nothing is read from those folders that the manifest does not vouch for.

MANIFEST = "manifest.json"
SCHEMA = 1


def write_manifest(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Vouch for every file now under ``folder``. ``provenance``: JSON that says how they were made."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }
    save_json(folder / MANIFEST, {"schema": SCHEMA, "files": files, "provenance": provenance})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a shipped folder. Raises `ArtifactError` if it is missing, damaged or of another schema."""
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(f"{path} is not there, so nothing vouches for {folder}. Remedy: {_REMEDY}")
    manifest = load_json(path)
    complete = isinstance(manifest, dict) and {"files", "provenance"} <= set(manifest)
    complete = complete and all(isinstance(manifest[part], dict) for part in ("files", "provenance"))
    facts = manifest["files"].values() if complete else ()
    complete = complete and all(isinstance(one, dict) and {"bytes", "sha256"} <= set(one) for one in facts)
    if not complete or manifest.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} is not a manifest of schema {SCHEMA}; update the helpers, or restore the file")
    return manifest


def listed(folder: Path) -> Mapping[str, Any]:
    """The files that the manifest of a shipped folder names; none where there is no such folder."""
    return _cached_manifest(folder)["files"] if folder.exists() else {}


def check_file(path: Path) -> Path:
    """``path``, if the manifest above it vouches for its bytes. Raises `ArtifactError` with the file and the remedy."""
    folder = next((parent for parent in path.parents if (parent / MANIFEST).exists()), None)
    if folder is None:
        raise ArtifactError(f"no {MANIFEST} above {path}: nothing vouches for it. Remedy: {_REMEDY}")
    problem = _problem(path, path.relative_to(folder).as_posix(), _cached_manifest(folder)["files"])
    if problem:
        raise ArtifactError(f"{path} {problem}. Remedy: {_REMEDY}")
    return path


KINDS = ("weights", "results")


def verify_tree(root: Path, studies: str = "[!.]*") -> tuple[list[str], int]:
    """(problems, number of files verified) of every ``weights/<study>`` and ``results/<study>`` under ``root``, or of
    those whose names match ``studies``. It is a problem if there is none, or one without the other."""
    found = {kind: {path.name for path in (root / kind).glob(studies) if path.is_dir()} for kind in KINDS}
    problems, count = [] if any(found.values()) else [f"there are no weights and results in {root}"], 0
    for name in sorted(set.symmetric_difference(*found.values())):
        problems.append(f"{name} has weights or results, and not both. Remedy: {_REMEDY}")
    for kind in KINDS:
        for folder in (root / kind / name for name in sorted(found[kind])):
            try:
                manifest = read_manifest(folder)
            except ArtifactError as error:
                problems.append(str(error))
                continue
            weights = root / "weights" / folder.name / MANIFEST
            made_from = manifest["provenance"].get("weights")
            if made_from and not (weights.exists() and sha256(weights) == made_from):
                problems.append(f"{folder} was made from other weights than those in weights/. Remedy: {_REMEDY}")
            files = manifest["files"]
            there = {p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*") if p.is_file()} - {MANIFEST}
            for name in sorted(files.keys() | there):
                count += 1
                if problem := _problem(folder / name, name, files):
                    problems.append(f"{folder / name} {problem}. Remedy: {_REMEDY}")
    return problems, count


def replace_folder(new: Path, old: Path) -> None:
    """Put the folder ``new`` in the place of ``old``: readers meet the one or the other (or, between two renames,
    neither), never a mixture."""
    aside = old.with_name(f".{old.name}.before")
    old.parent.mkdir(parents=True, exist_ok=True)
    if aside.exists() and not old.exists():  # another call was killed between its renames
        os.replace(aside, old)
    if old.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside, ignore_errors=True)


_REMEDY = "restore it with `git checkout -- weights results`, or make it anew with RETRAIN=True"


def _problem(path: Path, name: str, files: Mapping[str, Any]) -> str | None:
    if name not in files:
        return "is not named in the manifest"
    if not path.exists():
        return "is missing"
    if path.stat().st_size != files[name]["bytes"]:
        said = files[name]["bytes"]
        return f"has {path.stat().st_size} bytes where the manifest says {said}: it was truncated or changed"
    if sha256(path) != files[name]["sha256"]:
        return "does not have the sha256 of the manifest: it was changed or swapped"
    return None


def _cached_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        return read_manifest(folder)  # says what to do
    return _manifest_at(folder, path.stat().st_mtime_ns, path.stat().st_ino)


@lru_cache(maxsize=32)
def _manifest_at(folder: Path, *version: int) -> dict[str, Any]:
    return read_manifest(folder)


def _pretty(value: Any, indent: str = "") -> str:
    if isinstance(value, Mapping) and value:
        inner = indent + "  "
        rows = (f"{inner}{json.dumps(str(k))}: {_pretty(value[k], inner)}" for k in sorted(value, key=str))
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        inner = indent + "  "
        return "[\n" + ",\n".join(inner + _pretty(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
