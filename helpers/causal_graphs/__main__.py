"""The command line: ``python -m helpers.causal_graphs run --config config.yaml``.

The keys of the file are the settings of `CausalGraphsStudy`, the release's ``config.yaml`` among them; so are the
options: ``--target_idx 8 --mode reference``. ``graph``, ``stability``, ``attribute`` and ``evaluate`` take that step
alone, ``view`` writes the graphs of all classes as one page; ``python -m helpers.causal_graphs.fits`` trains.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import yaml

from helpers.causal_graphs import page, steps
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.study import checkpoints
from helpers.config import ConfigError, PlainError, literal
from helpers.downloads import DownloadError

STEPS: dict[str, dict[str, bool]] = {
    "run": {},
    "graph": {"learn_explainer": True},
    "stability": {"graph_stab": True},
    "attribute": {"gen_attr": True, "save_attr": True, "vis_attr": True, "baseline_attr": True},
    "evaluate": {"eval_attr": True},
    "view": {},
}
"""What each command switches on; all but ``run`` switch the others off."""

SWITCHES = ("learn_explainer", "graph_stab", "gen_attr", "save_attr", "vis_attr", "baseline_attr", "eval_attr")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m helpers.causal_graphs", description=__doc__.split("\n\n")[1])
    parser.add_argument("command", choices=STEPS)
    parser.add_argument("--config", type=Path, help="a YAML file of settings")
    given, rest = parser.parse_known_args(arguments)
    try:
        study = resolve(given.command, given.config, rest)
        logging.info("%s", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, default_flow_style=None))
        for path in view(study) if given.command == "view" else steps.run(study):
            logging.info("%s", path)
    except (PlainError, DownloadError, ValueError) as error:
        logging.error("%s", error)
        return 2
    return 0


def resolve(command: str, config: Path | None, options: list[str]) -> CausalGraphsStudy:
    """The settings of a command: the preset's, then the file's, then the options', then the command's own switches."""
    chosen: dict[str, Any] = {}
    if config:
        try:
            chosen = yaml.safe_load(config.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{config} cannot be read: {error}") from None
        if not isinstance(chosen, dict):
            raise ConfigError(f"{config} must hold names and values")
    chosen |= _options(options)
    preset = chosen.get("preset", "paper")
    if preset not in CausalGraphsStudy.presets:
        raise ConfigError(f"unknown preset {preset!r}; there are: {', '.join(CausalGraphsStudy.presets)}")
    switches = {} if command == "run" else dict.fromkeys(SWITCHES, False) | STEPS[command]
    return CausalGraphsStudy().override({**CausalGraphsStudy.presets[preset], **chosen, **switches})


def view(study: CausalGraphsStudy) -> list[Path]:
    """The graphs of all classes as one page that needs no network."""
    graphs = checkpoints(study)[0].graphs()
    title = f"{study.model_name} on {study.dataset_name}"
    path = steps.output_folder(study) / f"{study.model_name}.html"
    return [page.to_html({f"class {target}": graph for target, graph in graphs.items()}, path, title=title)]


def _options(words: list[str]) -> dict[str, Any]:
    """``["--target_idx", "8"]`` as ``{"target_idx": 8}``."""
    if len(words) % 2 or any(not name.startswith("--") for name in words[::2]):
        raise ConfigError(f"options come in pairs, --name value, not {' '.join(words)}")
    return {name[2:].replace("-", "_"): literal(text) for name, text in zip(words[::2], words[1::2], strict=True)}


if __name__ == "__main__":
    sys.exit(main())
