"""Installs the packages that a notebook needs and that are missing, and leaves the installed torch alone.

The bootstrap cell calls it outside a clone, before anything else is imported; hence the standard library only.
"""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

KEPT = ("torch", "torchvision", "numpy")
"""What Colab and Kaggle build for their own hardware: never replaced."""

ALWAYS = ("pydantic", "pyyaml", "requests", "safetensors")
"""What the helpers need in every study (`config`, `downloads`, `artifacts`), besides what a notebook names."""

logger = logging.getLogger(__name__)


class InstallError(RuntimeError):
    """pip did not install what a notebook needs; the message says what to do by hand."""

    def _render_traceback_(self) -> list[str]:  # IPython shows this one line instead of a traceback
        return [f"Sightline: {self}"]


def install(needs: str, requirements: Path = Path(__file__).parents[1] / "requirements.txt") -> list[str]:
    """Install those of ``needs`` (names, separated by blanks) and `ALWAYS` that are missing, in the ranges of
    ``requirements``.

    Returns what was installed. Raises `InstallError` if pip fails.
    """
    installed = {_normal(d.name): d.version for d in distributions() if d.name}
    missing = [name for name in (*needs.split(), *ALWAYS) if _normal(name) not in installed]
    if not missing:
        return []
    logger.info("installing %s", ", ".join(missing))
    kept = [f"{name}=={installed[name]}" for name in KEPT if name in installed]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "kept.txt")
        constraints.write_text("\n".join(kept))
        limits = ["-c", str(constraints), "-c", str(requirements)]
        command = [sys.executable, "-m", "pip", "install", "-q", *limits, *missing]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (re.findall("ERROR: (.*)", done.stderr) or [done.stderr.strip()[-200:]])[0]
        raise InstallError(
            f"install {', '.join(missing)} by hand, keeping {', '.join(kept) or 'nothing'}: pip says {reason}"
        )
    importlib.invalidate_caches()
    return missing


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
