"""The weights and results of a study to the Hugging Face Hub, and from there: whole sets, verified on both ways.

A repository of the Hub holds the folders ``weights/<study>`` and ``results/<study>`` as they are shipped, their
manifests among them, and a model card that is made from these. A token is the Hub client's own affair: it comes from
``HF_TOKEN`` or ``hf auth login``, and is neither asked for nor told here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import artifacts, config, downloads
from .artifacts import KINDS, MANIFEST, ArtifactError
from .config import ConfigError, suggest
from .downloads import DownloadError, Source

REPLACED = "runs/replaced"
"""Where a set is kept that a pulled one took the place of."""

log = logging.getLogger(__name__)


def push(study: str, hub: str, *, public: bool = False, root: Path = config.ROOT) -> str:
    """Commit the shipped set of ``study`` to the repository ``hub`` (``owner/name``), which is made, private unless
    ``public``, if there is none. Returns the commit, by which `pull` gets the same again.

    Raises `ArtifactError` for a set that is not whole, `DownloadError` for what the Hub says no to.
    """
    from huggingface_hub import CommitOperationAdd

    _check_names(study, hub)
    known = {path.parent.name for path in (root / "weights").glob(f"*/{MANIFEST}")}
    if study not in known:
        raise ConfigError(f"no study {study!r} is shipped: {suggest(study, known)}")
    _refuse_damaged(root, study)
    operations = [CommitOperationAdd("README.md", card(study, hub, root).encode())]
    for kind in KINDS:
        folder = root / kind / study
        for name in (MANIFEST, *artifacts.read_manifest(folder)["files"]):
            operations.append(CommitOperationAdd(f"{kind}/{study}/{name}", folder / name))
    with _asking(hub) as api:
        api.create_repo(hub, private=not public, exist_ok=True)
        commit = api.create_commit(hub, operations, commit_message=f"{study}: weights and results").oid
    log.info("%s: %d files in %s at %s", study, len(operations), hub, commit)
    return commit


def pull(study: str, hub: str, revision: str = "main", *, root: Path = config.ROOT) -> str:
    """Put the set of ``study`` in the repository ``hub`` in the place of the shipped one, which is kept in `REPLACED`.
    Returns the commit that ``revision`` (a commit, a tag or a branch) is.

    Everything comes from that one commit, and nothing is replaced until every file has the sha256 of its manifest and
    the results are of the weights. Raises `DownloadError` for what cannot be had or has other bytes.
    """
    _check_names(study, hub)
    with _asking(hub) as api:
        commit = api.model_info(hub, revision=revision).sha
    (root / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / "results", prefix=".new-") as temporary:
        new = Path(temporary)
        for kind in KINDS:
            with _asking(hub) as api:
                api.hf_hub_download(hub, f"{kind}/{study}/{MANIFEST}", revision=commit, local_dir=new)
            downloads.fetch_all(_sources(new / kind / study, hub, commit), new / kind / study)
        _refuse_damaged(new, study)
        _set_aside(root, study)
        for kind in KINDS:
            artifacts.replace_folder(new / kind / study, root / kind / study)
    log.info("%s is that of %s at %s", study, hub, commit)
    return commit


def card(study: str, hub: str, root: Path = config.ROOT) -> str:
    """The model card: what the manifests of ``study`` vouch for, what it was made from, and how to get it."""
    from .report import repository

    manifests = {kind: artifacts.read_manifest(root / kind / study) for kind in KINDS}
    files = {f"{kind}/{study}/{name}": facts for kind in KINDS for name, facts in manifests[kind]["files"].items()}
    provenance = manifests["weights"]["provenance"]
    environment = provenance.get("environment", {})
    rows = "\n".join(f"| `{name}` | {facts['bytes']:,} | `{facts['sha256']}` |" for name, facts in files.items())
    versions = ", ".join(f"{name} {version}" for name, version in environment.items()) or "not recorded"
    return f"""---
license: mit
tags:
- sightline
- interpretability
- {study}
---
# Sightline: {study}

Weights and results of the study `{study}` of [Sightline]({repository()}): {len(files)} files,
{sum(facts["bytes"] for facts in files.values()) / 1e6:.1f} MB. Its notebooks read them after

```bash
python -m helpers pull {study} --hub {hub} --revision COMMIT
```

which takes everything from that one commit and verifies each file. Weights are safetensors, with their settings in the
metadata; results are JSON and CSV that name the weights they were computed from.

## Made with

{versions}

```json
{json.dumps({name: value for name, value in provenance.items() if name != "environment"}, indent=1, sort_keys=True)}
```

## Files

| file | bytes | sha256 |
| --- | ---: | --- |
{rows}
"""


@contextmanager
def _asking(hub: str) -> Iterator[Any]:
    """The Hub's client; what it says no to is a `DownloadError` without what may be secret."""
    from huggingface_hub import HfApi, get_token

    for client in ("httpx", "httpx2"):  # whichever the Hub's library uses tells every URL, signed ones too
        logging.getLogger(client).setLevel(logging.WARNING)
    token = get_token()
    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="sightline")
    except Exception as error:  # of a library whose versions raise errors of several others
        said = " ".join(downloads.redacted(str(error)).split())
        said = said.replace(token, "...") if token else said
        remedy = "" if token else "; you are not logged in: `hf auth login`, or set HF_TOKEN"
        raise DownloadError(f"{hub}: {type(error).__name__}: {said}{remedy}") from None


def _check_names(study: str, hub: str) -> None:
    if not re.fullmatch(r"\w[\w-]*", study):
        raise ConfigError(f"{study!r} is no name of a study")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise ConfigError(f"--hub is owner/name, not {hub!r}")


def _sources(folder: Path, hub: str, commit: str) -> Mapping[str, Source]:
    """Where the files come from that the manifest in ``folder`` names."""
    place = f"hf://{hub}@{commit}/{folder.parent.name}/{folder.name}"
    return {
        name: Source(url=f"{place}/{name}", sha256=facts["sha256"], bytes=facts["bytes"] or None)
        for name, facts in artifacts.read_manifest(folder)["files"].items()
    }


def _refuse_damaged(root: Path, study: str) -> None:
    problems, files = artifacts.verify_tree(root, study)
    if problems or not files:
        raise ArtifactError(problems[0] if problems else f"there is nothing of {study} in {root}")


def _set_aside(root: Path, study: str) -> None:
    """Keep a copy of the set that is shipped, unless there is one: under the digest of its manifests. It has its name
    when it is whole."""
    manifests = [path for kind in KINDS if (path := root / kind / study / MANIFEST).exists()]
    kept = root / REPLACED / f"{study}-{config.digest([artifacts.sha256(path) for path in manifests])}"
    if not manifests or kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as temporary:
        for folder in {path.parent for path in manifests}:
            shutil.copytree(folder, Path(temporary, "set", folder.parent.name))
        Path(temporary, "set").replace(kept)
