"""The command line, with the options of the original:

    python -m helpers.self_explaining --few_shot_train_percent 0.02 --training_mode pretrain_and_joint_and_finetuning
    python -m helpers.self_explaining evaluate --model_pt FILE --vanilla_model_pt FILE --misc_model_pt FILE

Every setting of `SelfExplainingStudy` but those of the notebook's runs is an option under its own name; one that is on
or off needs no value:
--lr_scheduling. --preset NAME and --config FILE (YAML or JSON, the same names) come first, options win. One seed is run
unless --seeds says more. --deterministic makes it an error where a device does not repeat to the bit.
"""

from __future__ import annotations

import sys
from typing import Any

from helpers import options, runtime
from helpers.self_explaining import modes
from helpers.self_explaining.presets import SelfExplainingStudy

COMMANDS = ("train", "evaluate")  # the first one may go without saying
OWN = {"config": False, "deterministic": True, "help": True}  # options that are no settings; True: on or off

NOTEBOOKS = ("groups", "workers", "together", "retrain", "reevaluate")  # settings that nothing here would heed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return options.command_line(_run, arguments)


def _run(words: list[str]) -> None:
    command = options.command(words, COMMANDS)
    given = options.options(words, SelfExplainingStudy, OWN, NOTEBOOKS)
    if options.helped(given, SelfExplainingStudy, __doc__, elsewhere=NOTEBOOKS):
        return
    strict = given.pop("deterministic", False)
    study = resolve(given)
    with runtime.deterministic(strict=strict):
        (modes.evaluate if command == "evaluate" else modes.run)(study)


def resolve(given: dict[str, Any]) -> SelfExplainingStudy:
    """The settings of ``given`` options; the original runs one seed a command."""
    return options.resolve(given, SelfExplainingStudy, defaults={"seeds": 1})


if __name__ == "__main__":
    sys.exit(main())
