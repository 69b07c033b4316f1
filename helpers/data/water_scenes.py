"""Drawn scenes of water in the six bands of Sen1Floods11: land, rivers and lakes, clouds, shadows and the edge of a
swath, made by a program (``data_configs/water_scenes.yaml``). Synthetic: what is measured on them says nothing of
floods; they show how things work where no real chips may be shown.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from helpers.config import data_config
from helpers.data.flood_chips import DRY, NO_DATA, WATER, Chips
from helpers.runtime import numpy_generator


def load(seed: int = 0, train: int | None = None, validation: int | None = None, test: int | None = None) -> Chips:
    """Chips drawn with ``seed``, as many a split as the YAML says or as are asked for. A chip depends on the seed and
    its own number alone, so that more of them leave the others as they are."""
    facts = data_config("water_scenes")
    numbers = {"train": train, "validation": validation, "test": test}
    for split, of in facts["splits"].items():
        numbers[split] = of["chips"] if numbers[split] is None else numbers[split]
    splits = {split: tuple(f"{split}-{number:03d}" for number in range(n)) for split, n in numbers.items()}
    identity = f"{facts['name']}/{facts['version']}/{seed}"
    return Chips(facts["name"], facts["side"], splits, partial(draw, seed), identity)


def draw(seed: int, chip: str) -> tuple[np.ndarray, np.ndarray]:
    """(int16 [6, side, side], int8 [side, side]) of a chip, by its name."""
    facts = data_config("water_scenes")
    side, spectra = facts["side"], {name: np.array(value, float) for name, value in facts["spectra"].items()}
    draws = numpy_generator(seed, "water_scenes", chip)
    image = _land(draws, side, spectra)
    water = _water(draws, side, facts)
    turbid = np.clip(0.5 + 0.5 * _field(draws, side, 40), 0, 1) * draws.uniform()
    flooded = _mix(spectra["clear"], spectra["turbid"], turbid)
    emergent = np.clip(_field(draws, side, 14) - 0.3, 0, 0.6) * (draws.uniform() < facts["emergent"])
    image = np.where(water, flooded * (1 - emergent) + spectra["vegetation"][:, None, None] * emergent, image)
    if draws.uniform() < facts["shadows"]:  # dark as water, and dry
        shade = _field(draws, side, 18) > 1.4
        image = np.where(shade & ~water, 0.3 * image, image)
    image *= 1 + 0.06 * draws.standard_normal((1, side, side))
    image += 40 * draws.standard_normal(image.shape)
    mask = np.where(water, WATER, DRY)
    if draws.uniform() < facts["clouds"]:
        thickness = np.clip(_field(draws, side, 22) - draws.uniform(0.9, 1.6), 0, 1)
        image = image * (1 - thickness) + spectra["cloud"][:, None, None] * thickness
        mask = np.where(thickness > 0.1, NO_DATA, mask)
    image = np.clip(image, 1, 12_000)
    if draws.uniform() < facts["edges"]:
        beyond = _slope(draws, side) > draws.uniform(0.2, 0.45) * side
        image[:, beyond], mask[beyond] = 0, NO_DATA
    return image.round().astype(np.int16), mask.astype(np.int8)


def _land(draws: np.random.Generator, side: int, spectra: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [6, side, side]: vegetation and soil, with towns on them."""
    green = np.clip(0.5 + 0.4 * _field(draws, side, 30) + draws.uniform(-0.4, 0.4), 0, 1)
    land = _mix(spectra["soil"], spectra["vegetation"], green)
    land = land * (1 + 0.15 * _field(draws, side, 6))
    for kind in ("town", "roofs"):  # light roofs reflect less in the short-wave infrared than in green, as water does
        built = (_field(draws, side, 12) > 1.7) & (draws.uniform(size=(side, side)) < 0.7)
        land = np.where(built, spectra[kind][:, None, None], land)
    return land


def _water(draws: np.random.Generator, side: int, facts: dict) -> np.ndarray:
    """bool [side, side]: nothing, a river along a level of a smooth field, lakes above a level of another, or both."""
    kind = draws.choice(["none", "river", "lakes", "both"], p=facts["kinds"])
    course, width, basin = _field(draws, side, 45), draws.uniform(0.05, 0.25), _field(draws, side, 28)
    level = draws.uniform(0.4, 1.4)
    river, lakes = np.abs(course) < width, basin > level
    return {"none": np.zeros_like(river), "river": river, "lakes": lakes, "both": river | lakes}[kind]


def _field(draws: np.random.Generator, side: int, length: float) -> np.ndarray:
    """float64 [side, side], mean 0 and sd 1: Gaussian noise, smooth over ``length`` pixels, cut out of one twice as
    large, which would go on at its opposite border."""
    whole = 2 * side
    smooth = np.exp(-2 * (length * np.hypot(np.fft.fftfreq(whole)[:, None], np.fft.rfftfreq(whole))) ** 2)
    noise = np.fft.irfft2(np.fft.rfft2(draws.standard_normal((whole, whole))) * smooth, (whole, whole))
    return (noise / noise.std())[:side, :side]


def _slope(draws: np.random.Generator, side: int) -> np.ndarray:
    """float64 [side, side]: the distance in pixels from a line through the middle, on one side positive."""
    angle = draws.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    return rows * np.sin(angle) + columns * np.cos(angle)


def _mix(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Spectra [6], the ``share`` [side, side] of the ``other``."""
    return one[:, None, None] * (1 - share) + other[:, None, None] * share
