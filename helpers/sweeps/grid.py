"""What to sweep over: ``-p SEED 0:5 -p few_shot_train_percent 0.02,0.05`` as the list of runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import ConfigError, literal

LARGEST = 10_000  # values of a range and runs of a grid: more is a slip of the keyboard

RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")


def grid(given: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Every combination of the `values` of each name, the last one varying fastest. Raises `ConfigError` for a name
    that is given twice, and a value that is."""
    swept: dict[str, list[Any]] = {}
    for name, text in given:
        if name in swept:
            raise ConfigError(f"{name} is given twice; give its values together: -p {name} 0,1,5:9")
        swept[name] = values(text)
    return combinations(swept)


def combinations(swept: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value a name. Raises `ConfigError` for a name without values, or with one of them twice."""
    size = 1
    for name, several in swept.items():
        texts = [repr(value) for value in several]
        if not texts:
            raise ConfigError(f"{name} has no values")
        if twice := [text for text in dict.fromkeys(texts) if texts.count(text) > 1]:
            raise ConfigError(f"{name} is to be {', '.join(twice)} more than once")
        size *= len(texts)
    if size > LARGEST:
        raise ConfigError(f"that makes {size:,} runs; {LARGEST:,} are the most")
    return [dict(zip(swept, chosen, strict=True)) for chosen in itertools.product(*swept.values())]


def values(text: str) -> list[Any]:
    """The values that a word of the command line stands for: Python literals, plain words and ranges (``0:5`` is 0 to
    4, ``0:10:2`` has steps), with commas between them. A comma within brackets or quotes belongs to its value:
    ``[0,1],[2]`` are two lists, ``(0.9,0.95)`` is one tuple. Raises `ConfigError` for what is empty."""
    found: list[Any] = []
    for part in _parts(text):
        if not part:
            raise ConfigError(f"{text!r} has an empty value; for an empty text write ''")
        if ends := RANGE.fullmatch(part):
            start, stop, step = (int(end) if end else 1 for end in ends.groups())
            several = range(start, stop, step) if step else range(0)
            if not 0 < len(several) <= LARGEST:
                raise ConfigError(f"the range {part} has no values, or too many; 0:5 is 0 to 4")
            found += several
        else:
            found.append(literal(part))
    return found


def _parts(text: str) -> list[str]:
    """``text`` cut at the commas that no bracket or quotation mark encloses."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not (depth or quote):
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
