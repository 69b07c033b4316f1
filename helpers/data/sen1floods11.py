"""Sen1Floods11 v1.1, the hand-labelled part: 446 Sentinel-2 chips of 512 x 512 pixels with masks of water
(``data_configs/sen1floods11.yaml``; spec pinets, section 6.1)."""

from __future__ import annotations

import csv
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from helpers import buckets, downloads
from helpers.config import data_config
from helpers.data import files
from helpers.data.flood_chips import Chips
from helpers.downloads import DownloadError

HINT = 'the data set "water_scenes" is drawn by the program and needs no files'


def load(subset: str = "") -> Chips:
    """The official whole, from ``sen1floods11`` under the data folder or else downloaded (974 MiB), or a ``subset`` at
    hand: "hand18", 18 chips of the splits test and bolivia.

    Raises `DownloadError` if the files cannot be had or are not what they should be, `ConfigError` for another subset.
    """
    facts = data_config("sen1floods11")
    chosen = files.facts_of(facts, subset)
    folder = downloads.data_root() / chosen["folder"]
    if subset:
        files.verify(folder, chosen["files"], f"Sen1Floods11's {subset}", "the whole is downloaded", HINT)
        names = {split: _listed(folder / of["file"]) for split, of in chosen["splits"].items()}
        there = {Path(name).stem for name in chosen["files"] if name.startswith("chips/")}
        splits = {split: tuple(name for name in listed if name in there) for split, listed in names.items()}
        return Chips(f"sen1floods11/{subset}", facts["side"], splits, partial(_read_npz, folder / "chips"), subset)
    if not _whole(folder):
        _download_once(folder)
    splits = split_lists(folder)
    return Chips("sen1floods11", facts["side"], splits, partial(read, folder), "v1.1")


def _whole(folder: Path) -> bool:
    lists = [folder / of["file"] for of in data_config("sen1floods11")["splits"].values()]
    return all(path.exists() for path in lists) and not _missing(folder)


def _download_once(folder: Path) -> None:
    """`download`, of several processes by the first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not _whole(folder):
                download(folder)
    except OSError as error:
        raise DownloadError(f"{folder} cannot be written: {error}; SIGHTLINE_DATA names another folder") from error


def download(folder: Path, progress: bool = True) -> None:
    """Fetch the split lists, and the images and masks that they name, into the layout of the bucket. What is there
    whole is left as it is; a run that was cut off goes on. Raises `DownloadError`."""
    facts = data_config("sen1floods11")
    lists = [of["file"] for of in facts["splits"].values()]
    known = buckets.listing(facts["bucket"], str(Path(lists[0]).parent), hint=HINT)
    buckets.fetch(_pick(known, lists), folder, hint=HINT, progress=progress)
    wanted = [file for names in split_lists(folder).values() for chip in names for file in _files(chip)]
    for prefix in (facts["images"], facts["labels"]):
        known |= buckets.listing(facts["bucket"], f"{prefix}/", hint=HINT)
    sources = _pick(known, wanted)
    for chip, sha256 in facts["sha256"].items():
        if (name := _files(chip)[0]) in sources:
            sources[name] = sources[name].override({"sha256": sha256})
    buckets.fetch(sources, folder, hint=HINT, progress=progress)


def split_lists(folder: Path) -> dict[str, tuple[str, ...]]:
    """The chips of each split, from the lists of the release. They have no header: the first row is a chip. Raises
    `DownloadError` for a list that is not as released."""
    found = {}
    for split, of in data_config("sen1floods11")["splits"].items():
        path = folder / of["file"]
        try:
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row]
            found[split] = tuple(chip_of(row[0], row[1]) for row in rows)
        except (OSError, ValueError, IndexError) as error:
            raise _broken(path, error) from error
        if len(set(found[split])) != of["chips"]:
            raise _broken(path, f"it names {len(set(found[split]))} chips, not {of['chips']}")
    return found


def chip_of(sentinel1: str, label: str) -> str:
    """``Ghana_103272`` of ``Ghana_103272_S1Hand.tif`` and ``Ghana_103272_LabelHand.tif``; the image is then
    ``Ghana_103272_S2Hand.tif``. Raises ``ValueError`` for names that do not belong together."""
    chip = sentinel1.removesuffix("_S1Hand.tif")
    if chip == sentinel1 or label != f"{chip}_LabelHand.tif":
        raise ValueError(f"{sentinel1!r}, {label!r} are not the names of a chip")
    return chip


def read(folder: Path, chip: str) -> tuple[np.ndarray, np.ndarray]:
    """(int16 [6, H, W], int8 [H, W]) of the GeoTIFFs of a chip. Raises `DownloadError` naming the file and the fault:
    cut off, bands missing, another size, another place or coordinate system than its mask."""
    import rasterio  # only the whole data set needs it

    facts = data_config("sen1floods11")
    image, label = (folder / name for name in _files(chip))
    bands = [band + 1 for band in facts["bands"]]  # rasterio counts from 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # said below
            with rasterio.open(image) as source, rasterio.open(label) as mask:
                _check(image, source, facts["file_bands"])
                _check(label, mask, 1)
                if not source.transform.almost_equals(mask.transform, 1e-9):
                    raise _broken(label, f"it lies at another place than {image.name}")
                return source.read(bands), mask.read(1)
    except rasterio.errors.RasterioError as error:
        raise _broken(image, f"{error}; perhaps it was only half downloaded") from error


def _check(path: Path, file, n_bands: int) -> None:
    facts = data_config("sen1floods11")
    side = facts["side"]
    if file.count != n_bands:
        raise _broken(path, f"it has {file.count} bands, not {n_bands}")
    if (file.height, file.width) != (side, side):
        raise _broken(path, f"it has {file.height} x {file.width} pixels, not {side} x {side}")
    if file.crs is None or file.crs.to_string() != facts["crs"]:
        raise _broken(path, f"its coordinates are in {file.crs or 'no system'}, not in {facts['crs']}")


def _files(chip: str) -> tuple[str, str]:
    """Image and mask of a chip, as paths in the bucket."""
    facts = data_config("sen1floods11")
    return f"{facts['images']}/{chip}_S2Hand.tif", f"{facts['labels']}/{chip}_LabelHand.tif"


def _missing(folder: Path) -> bool:
    chips = [chip for names in split_lists(folder).values() for chip in names]
    return any(not (folder / file).exists() for chip in chips for file in _files(chip))


def _pick(known: dict[str, downloads.Source], wanted: list[str]) -> dict[str, downloads.Source]:
    if lacking := [name for name in wanted if name not in known]:
        raise DownloadError(f"the bucket lacks {lacking[0]} and {len(lacking) - 1} more of what should be there")
    return {name: known[name] for name in wanted}


def _read_npz(folder: Path, chip: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"{chip}.npz") as file:
        return file["s2"], file["label"]


def _listed(path: Path) -> list[str]:
    return path.read_text().split()


def _broken(path: Path, why: object) -> DownloadError:
    return DownloadError(
        f"{path} is not as released: {why}\n  by hand: delete it and run again, it is fetched anew\n"
        f"  without a download: {HINT}"
    )
