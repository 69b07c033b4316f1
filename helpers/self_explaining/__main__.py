"""The command line, with the options of the original:

    python -m helpers.self_explaining --few_shot_train_percent 0.02 --training_mode pretrain_and_joint_and_finetuning
    python -m helpers.self_explaining evaluate --model_pt FILE --vanilla_model_pt FILE --misc_model_pt FILE

Every setting of `SelfExplainingStudy` is an option under its own name; one that is on or off needs no value:
--lr_scheduling. --preset NAME and --config FILE (YAML or JSON, the same names) come first, options win. One seed is run
unless --seeds says more. --deterministic makes it an error where a device does not repeat to the bit.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from helpers.config import ConfigError, PlainError, literal, suggest
from helpers.downloads import DownloadError
from helpers.self_explaining import modes
from helpers.self_explaining.presets import SelfExplainingStudy

COMMANDS = ("train", "evaluate")  # the first one may go without saying
FIELDS = SelfExplainingStudy.model_fields
OWN = ("config", "deterministic", "help")  # options that are no settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 after a mistake, which is told in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and not words[0].startswith("-") else COMMANDS[0]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"unknown command {command!r}: {suggest(command, COMMANDS)}")
        given = options(words)
        if given.pop("help", False):
            logging.info("%s\n%s", __doc__, settings_help())
            return 0
        strict = given.pop("deterministic", False)
        study = resolve(given)
        if command == "evaluate":
            modes.evaluate(study)
        else:
            modes.run(study, strict=strict)
    except (PlainError, DownloadError, FloatingPointError, ValueError) as error:
        logging.error("%s", error)
        return 2
    return 0


def options(words: list[str]) -> dict[str, Any]:
    """``["--batch_size", "32", "--lr_scheduling"]`` as ``{"batch_size": 32, "lr_scheduling": True}``; also
    ``--batch_size=32``. Raises `ConfigError` for an option that does not exist or lacks its value."""
    given: dict[str, Any] = {}
    words = ["--help" if word == "-h" else word for word in words]
    while words:
        name, equals, text = words.pop(0).partition("=")
        known, name = name.startswith("--"), name.removeprefix("--").replace("-", "_")
        if not known:
            raise ConfigError(f"{name!r} belongs to no option: they are --name value")
        if name not in FIELDS and name not in OWN:
            raise ConfigError(f"unknown option --{name}: {suggest(name, [*FIELDS, *OWN])}")
        switch = name in ("deterministic", "help") or (name in FIELDS and FIELDS[name].annotation is bool)
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
        elif not equals and not switch:
            raise ConfigError(f"--{name} needs a value")
        given[name] = _value(name, text, switch)
    return given


def resolve(given: dict[str, Any]) -> SelfExplainingStudy:
    """The settings of ``given`` options: the preset's, then the ``config`` file's, then their own."""
    given = dict(given)
    chosen = (_read(Path(given.pop("config"))) if "config" in given else {}) | given
    preset = chosen.get("preset", "paper")
    if preset not in SelfExplainingStudy.presets:
        raise ConfigError(f"unknown preset {preset!r}: {suggest(str(preset), SelfExplainingStudy.presets)}")
    for name in chosen.keys() & FIELDS.keys():
        kinds = get_args(FIELDS[name].annotation) if get_origin(FIELDS[name].annotation) is Literal else ()
        if kinds and chosen[name] not in kinds:
            raise ConfigError(f"unknown {name} {chosen[name]!r}: {suggest(str(chosen[name]), map(str, kinds))}")
    return SelfExplainingStudy().override({"seeds": 1, **SelfExplainingStudy.presets[preset], **chosen})


def settings_help() -> str:
    """A line for every setting: its name, default and meaning."""
    rows = []
    for name, field in FIELDS.items():
        kinds = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        listed = f"{', '.join(map(str, kinds))}; " if kinds and name != "dataset" else ""
        rows.append(f"  --{name} ({field.default!r}) {listed}{field.description or ''}".rstrip("; "))
    return "\n".join(rows)


def _value(name: str, text: str, switch: bool) -> Any:
    """What ``text`` means for the option ``name``."""
    if switch:
        if text.lower() not in ("", "true", "false"):
            raise ConfigError(f"--{name} is on or off, not {text!r}: it takes no value")
        return text.lower() != "false"
    return text if name in OWN or FIELDS[name].annotation is str else literal(text)


def _read(path: Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file (JSON is YAML)."""
    try:
        chosen = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(chosen, dict):
        raise ConfigError(f"{path} must hold names and values")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
