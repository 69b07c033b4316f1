"""Device, named random streams, determinism, and a report of the environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

from helpers.config import PlainError

Device = Literal["auto", "cpu", "cuda", "mps"]


class TorchvisionError(PlainError, ImportError):
    """A torchvision that is missing or was built for another torch; the message says what to install."""


def device(name: Device = "auto") -> torch.device:
    """The device to compute on: ``auto`` takes CUDA, then Apple's, then the CPU. Raises ``RuntimeError`` if it is not
    there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    if not there.get(name, False):
        found = ", ".join(kind for kind, available in there.items() if available)
        raise RuntimeError(f"DEVICE={name!r} is not available here; there are: {found}")
    return torch.device(name)


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed of the stream called ``names`` under ``seed``: ``stream(0, "order", epoch)``.

    Streams are independent of each other and of the order in which they are asked for, so that one more draw in one
    place never changes another.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU ``torch.Generator`` of the named stream."""
    return torch.Generator().manual_seed(stream(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of the named stream."""
    return np.random.default_rng(stream(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """torch's global generators hold the named stream inside, and what they held before afterwards.

    For code that takes no generator: initialisation, dropout.
    """
    with torch.random.fork_rng(enabled=True):
        torch.manual_seed(stream(seed, *names))
        yield


@contextmanager
def deterministic(enabled: bool = True, *, strict: bool = False) -> Iterator[None]:
    """Algorithms that repeat to the bit inside, as far as the device has them (the CPU does); where it has none, a
    warning, or with ``strict``, and in all that a strict one holds, an error."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before_cudnn = cudnn.deterministic, cudnn.benchmark
    before_fill = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # cuBLAS reads it once, at its first call
    torch.use_deterministic_algorithms(enabled, warn_only=not strict and before != (True, False))
    cudnn.deterministic, cudnn.benchmark = enabled, False
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that takes a twentieth of the time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before_cudnn
        torch.utils.deterministic.fill_uninitialized_memory = before_fill


def fast_dtype(where: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster, else float32. A CPU needs AMX for that: AVX-512's own bfloat16
    is no faster than float32, and a third slower in the wide layers of prototypes."""
    fast = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_amx_tile_supported}.get(where.type)
    return torch.bfloat16 if fast and fast() else torch.float32


def environment() -> dict[str, str]:
    """Versions and hardware, for provenance and bug reports."""
    packages = ("torch", "torchvision", "numpy", "lightning-fabric", "captum", "quantus", "papermill", "ipywidgets")
    report = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    for package in packages:
        try:
            report[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            report[package] = "not installed"
    cpu = f"CPU, {torch.get_num_threads()} threads"
    report["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return report


def import_torchvision():
    """``torchvision``. Raises `TorchvisionError` where it is missing, or its build and torch's do not fit, as with the
    CPU-only torch 2.13.0."""
    try:
        import torchvision
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            raise TorchvisionError("torchvision is not installed: `pip install torchvision`") from None
        raise TorchvisionError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({type(error).__name__}: {error}). "
            "Their builds do not fit: install a matching pair, for example "
            "`pip install torch==2.14.1 torchvision==0.29.1`."
        ) from error
    return torchvision
