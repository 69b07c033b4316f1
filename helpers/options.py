"""Command lines and YAML files of settings: one reader for all studies.

    given = options(words, PrototypesStudy, own={"config": False, "help": True})   # --model.feature-layer maxpool4
    study = resolve(given, PrototypesStudy)

`command_line` is the program around that.

Every setting is an option under its dotted name; dashes and underscores are the same. One that is on or off needs no
value, and ``--train.no-checkpoint`` is ``--train.checkpoint false``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from helpers.config import ConfigError, PlainError, Study, literal, suggest

SHORT = {"-c": "--config", "-h": "--help"}

S = TypeVar("S", bound=Study)


def command_line(run: Callable[[list[str]], None], arguments: Sequence[str] | None = None) -> int:
    """``run(words)`` with ``arguments``, or those of the program, and what it logs on the standard output; returns the
    exit code, 2 after a mistake, which is told in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        run(list(sys.argv[1:] if arguments is None else arguments))
    except (PlainError, FloatingPointError, ValueError) as error:
        logging.error("%s", error)
        return 2
    return 0


def command(words: list[str], known: Collection[str]) -> str:
    """Takes the command off ``words``; the first of ``known`` may go without saying. Raises `ConfigError` for one that
    there is not."""
    found = words.pop(0) if words and not words[0].startswith("-") else next(iter(known))
    if found not in known:
        raise ConfigError(f"unknown command {found!r}: {suggest(found, known)}")
    return found


def helped(
    given: dict[str, Any], schema: type[Study], about: str, *, dashes: bool = False, elsewhere: Collection[str] = ()
) -> bool:
    """Whether ``given`` asks for help, which is then told: ``about``, and every setting but those of ``elsewhere``."""
    if asked := given.pop("help", False):
        logging.info("%s\n%s", about, listing(schema, dashes=dashes, elsewhere=elsewhere))
    return asked


def fields(schema: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its dotted name, those within settings too."""
    found: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def options(
    words: Sequence[str], schema: type[Study], own: Mapping[str, bool], elsewhere: Collection[str] = ()
) -> dict[str, Any]:
    """``["--batch-size", "32", "--lr_scheduling"]`` as ``{"batch_size": 32, "lr_scheduling": True}``; also
    ``--batch_size=32`` and several values, ``--lr_schedule 100 150``, where a setting takes them.

    ``own``: options that are no settings, and whether they are on or off; ``elsewhere``: settings that a command line
    would ignore. Raises `ConfigError` for these, and for an option that does not exist or lacks its value.
    """
    known, given, words = fields(schema), {}, list(words)
    while words:
        word = words.pop(0)
        word = SHORT.get(word, word)
        spelt, equals, text = word.partition("=")
        if not spelt.startswith("--"):
            raise ConfigError(f"{word!r} belongs to no option: they are --name value")
        spelt = spelt.removeprefix("--")
        name, negated = _name(spelt, known)
        if name not in known and name not in own:
            raise ConfigError(f"unknown option --{spelt}: {suggest(name, [*known, *own])}")
        if name in elsewhere:
            raise ConfigError(f"--{spelt} is of the notebook's runs: a command trains one network after the other")
        switch = own[name] if name in own else _is(known[name], bool)
        values = [text] if equals else []
        while not equals and not negated and words and not words[0].startswith("--"):
            values.append(words.pop(0))
            if name in own or get_origin(known[name].annotation) is not tuple:
                break
        if switch:
            given[name] = _switch(spelt, "".join(values)) != negated
        elif not values:
            raise ConfigError(f"--{spelt} needs a value")
        else:
            given[name] = " ".join(values) if name in own else _value(known[name], " ".join(values))
    return given


def resolve(
    given: Mapping[str, Any], schema: type[S], *, defaults: Mapping[str, Any] | None = None, ignored: Sequence[str] = ()
) -> S:
    """The settings of ``given`` options: the preset's, then those of the file ``config``, then their own. ``defaults``:
    settings that the command line has other defaults of; ``ignored``: keys that may stand in a file and mean nothing.
    Raises `ConfigError` for a preset, a choice or a value that there cannot be."""
    known = fields(schema)
    chosen = dict(given)
    if config := chosen.pop("config", None):
        chosen = read(Path(config), schema, ignored) | chosen
    preset = chosen.get("preset", known["preset"].default)
    if preset not in schema.presets:
        raise ConfigError(f"unknown preset {preset!r}: {suggest(str(preset), schema.presets)}")
    for name in chosen.keys() & known.keys():
        kinds = choices(known[name])
        if kinds and chosen[name] not in kinds:
            raise ConfigError(f"unknown {name} {chosen[name]!r}: {suggest(str(chosen[name]), map(str, kinds))}")
    return schema().override({**(defaults or {}), **schema.presets[preset], **chosen})


def read(path: Path, schema: type[Study], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML or JSON file (JSON is YAML) by dotted name; sections may be nested, keys have dashes or
    underscores. Raises `ConfigError` for a file that cannot be read, and for what is no setting."""
    try:
        chosen = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(chosen or {}, dict):
        raise ConfigError(f"{path} must hold names and values")
    known, found = fields(schema), {}
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    for spelt, value in _flat(chosen or {}, sections):
        name, negated = _name(spelt, known)
        if name in ignored:
            continue
        if name not in known:
            what = f"{spelt} is a section, {value!r} is none" if name in sections else f"unknown setting {spelt!r}"
            raise ConfigError(f"{path}: {what}: {suggest(name, known)}")
        if _is(known[name], bool) and isinstance(value, bool):
            found[name] = value != negated
        else:
            found[name] = _value(known[name], value) if isinstance(value, str) else value
    return found


def listing(schema: type[Study], *, dashes: bool = False, elsewhere: Collection[str] = ()) -> str:
    """A line for every setting but those of ``elsewhere``: its name, default, choices and meaning."""
    rows = []
    for name, field in fields(schema).items():
        if name in elsewhere:
            continue
        kinds = choices(field)
        listed = f"{', '.join(map(str, kinds))}; " if kinds else ""
        shown = name.replace("_", "-") if dashes else name
        default = field.get_default(call_default_factory=True)
        rows.append(f"  --{shown} ({default!r}) {listed}{field.description or ''}".rstrip("; "))
    return "\n".join(rows)


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """The values that a setting has to choose from, if it does."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _name(spelt: str, known: Mapping[str, FieldInfo]) -> tuple[str, bool]:
    """(the setting that is meant, whether it is negated): ``train.no-checkpoint`` is (``train.checkpoint``, True)."""
    name = spelt.replace("-", "_")
    section, dot, last = name.rpartition(".")
    positive = section + dot + last.removeprefix("no_")
    if name not in known and positive in known and _is(known[positive], bool):
        return positive, True
    return name, False


def _flat(values: Mapping[str, Any], sections: set[str], prefix: str = ""):
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and dotted.replace("-", "_") in sections:
            yield from _flat(value, sections, f"{dotted}.")
        else:
            yield dotted, value


def _value(field: FieldInfo, text: str) -> Any:
    """What ``text`` means for a setting."""
    if _is(field, bool):
        return _switch("a setting", text)
    if get_origin(field.annotation) is tuple:
        value = literal(text)
        return value if isinstance(value, list | tuple) else [literal(part) for part in text.replace(",", " ").split()]
    if text.lower() in ("none", "null") and type(None) in get_args(field.annotation):
        return None
    return text if _is(field, str) or choices(field) and text in choices(field) else literal(text)


def _switch(spelt: str, text: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise ConfigError(f"--{spelt} is on or off, not {text!r}: it takes no value")
    return text.lower() != "false"


def _is(field: FieldInfo, kind: type) -> bool:
    parts = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    return kind in parts
