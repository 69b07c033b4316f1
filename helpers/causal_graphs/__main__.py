"""The command line: ``python -m helpers.causal_graphs run --config config.yaml``.

The keys of the file are the settings of `CausalGraphsStudy`, the release's ``config.yaml`` among them; so are the
options: ``--target_idx 8 --mode reference``. ``graph``, ``stability``, ``attribute`` and ``evaluate`` take that step
alone, ``view`` writes the graphs of all classes as one page; ``python -m helpers.causal_graphs.fits`` trains.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import yaml

from helpers import options
from helpers.causal_graphs import page, steps
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.study import checkpoints

STEPS: dict[str, dict[str, bool]] = {
    "run": {},
    "graph": {"learn_explainer": True},
    "stability": {"graph_stab": True},
    "attribute": {"gen_attr": True, "save_attr": True, "vis_attr": True, "baseline_attr": True},
    "evaluate": {"eval_attr": True},
    "view": {},
}
"""What each command switches on; all but ``run``, which may go without saying, switch the others off."""

OWN = {"config": False, "help": True}  # options that are no settings; True: on or off
SWITCHES = ("learn_explainer", "graph_stab", "gen_attr", "save_attr", "vis_attr", "baseline_attr", "eval_attr")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return options.command_line(_run, arguments)


def _run(words: list[str]) -> None:
    command = options.command(words, STEPS)
    given = options.options(words, CausalGraphsStudy, OWN)
    if options.helped(given, CausalGraphsStudy, __doc__):
        return
    study = resolve(command, given)
    logging.info("%s", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, default_flow_style=None))
    for path in view(study) if command == "view" else steps.run(study):
        logging.info("%s", path)


def resolve(command: str, given: dict[str, Any]) -> CausalGraphsStudy:
    """The settings of a command: those of ``given`` options, then the command's own switches."""
    switches = {} if command == "run" else dict.fromkeys(SWITCHES, False) | STEPS[command]
    return options.resolve(given, CausalGraphsStudy).override(switches)


def view(study: CausalGraphsStudy) -> list[Path]:
    """The graphs of all classes as one page that needs no network."""
    graphs = checkpoints(study)[0].graphs()
    title = f"{study.model_name} on {study.dataset_name}"
    path = steps.output_folder(study) / f"{study.model_name}.html"
    return [page.to_html({f"class {target}": graph for target, graph in graphs.items()}, path, title=title)]


if __name__ == "__main__":
    sys.exit(main())
