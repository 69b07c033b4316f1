"""The command line, with the options of the original:

    python -m helpers.prototypes -c config.yaml --model.feature-layer maxpool4 --train.no-push-prototypes --seed 3
    python -m helpers.prototypes --resume FOLDER
    python -m helpers.prototypes goldilocks -h

Every setting of `PrototypesStudy` but those of the notebook's runs is an option under its dotted name, with dashes or
underscores; one that is on or off needs no value, and "no-" before its last name switches it off. -c, --config FILE is
YAML with the same names, nested by section. Options win over the file, the file over --preset NAME, that over defaults.
One seed is run unless --seeds says more. --resume FOLDER goes on with a run that was cut off.
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import options
from helpers.config import ConfigError
from helpers.prototypes.presets import PrototypesStudy

COMMANDS = ("train", "goldilocks")  # the first one may go without saying
OWN = {"config": False, "resume": False, "help": True}  # options that are no settings; True: on or off

NOTEBOOKS = ("groups", "workers", "retrain", "reevaluate")  # settings that nothing here would heed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return options.command_line(_run, arguments)


def _run(words: list[str]) -> None:
    if options.command(words, COMMANDS) == "goldilocks":
        from helpers.prototypes import goldilocks

        goldilocks.command(words)
        return
    given = options.options(words, PrototypesStudy, OWN, NOTEBOOKS)
    if not options.helped(given, PrototypesStudy, __doc__, dashes=True, elsewhere=NOTEBOOKS):
        train(given)


def resolve(given: dict) -> PrototypesStudy:
    """The settings of ``given`` options."""
    from helpers.prototypes.runs import GIT_HASH

    return options.resolve(given, PrototypesStudy, defaults={"seeds": 1}, ignored=(GIT_HASH,))


def train(given: dict) -> None:
    """A run for each seed, or the rest of the one that is to be resumed."""
    from helpers.prototypes import runs, tuning  # torch, which help does without

    if folder := given.pop("resume", None):
        if given:
            raise ConfigError(f"--resume takes the settings of the run, not --{next(iter(given))}")
        study = runs.read_config(Path(folder))
        if runs.is_over(Path(folder)):
            raise ConfigError(f"{folder} is over: nothing is left to resume, and results/ has what it came to")
        runs.run(study, study.seed, Path(folder), progress=True)
        return
    study = resolve(given)
    for seed in range(study.seed, study.seed + study.seeds):
        chosen = tuning.tuned(study, seed) if study.train.hparam_tune else study
        runs.run(chosen, seed, progress=True)


if __name__ == "__main__":
    sys.exit(main())
