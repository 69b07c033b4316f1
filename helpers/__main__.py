"""The command line: ``python -m helpers run | refresh | verify | readme``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from . import notebooks, report
from .config import ROOT, ConfigError, literal
from .notebooks import TIMEOUT


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 where something failed or is stale."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    given = _parser().parse_args(arguments)
    try:
        return given.command(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def run(given: argparse.Namespace) -> int:
    parameters = {name: literal(text) for name, text in given.parameters}
    runs = report.run_all(given.out, given.notebooks, parameters, given.timeout)
    print(f"\n{given.out / 'index.html'}")
    return int(not runs or any(run.status != "ok" for run in runs))


def refresh(given: argparse.Namespace) -> int:
    failed = 0
    for path in notebooks.list_notebooks(given.notebooks):
        executed = notebooks.refresh(path, given.timeout)
        print(f"{executed.name}: {executed.status} {executed.error}")
        failed += executed.status != "ok"
    return int(failed > 0)


def verify(given: argparse.Namespace) -> int:
    from .artifacts import verify_tree  # imports torch

    problems, n_files = verify_tree(ROOT)
    print("\n".join(problems) or f"{n_files} files verified")
    return int(bool(problems))


def readme(given: argparse.Namespace) -> int:
    file = ROOT / "README.md"
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    new = report.with_results(old, [notebooks.collect(path) for path in notebooks.list_notebooks()])
    if given.check:
        print("README.md is up to date" if new == old else "README.md is stale: run `python -m helpers readme`")
        return int(new != old)
    file.write_text(new, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=text, description=text)
        added.set_defaults(command=function)
        return added

    running = command(run, "execute notebooks and write runs/index.html")
    running.add_argument("--out", type=Path, default=ROOT / "runs", help="folder of what is written (runs)")
    running.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a notebook parameter, in Python's spelling: -p RETRAIN True")  # fmt: skip
    refreshing = command(refresh, "execute notebooks with their default parameters and store the outputs in them")
    for added in (running, refreshing):
        added.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="number or name, such as 01; none: all")
        added.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S", help="seconds each (%(default)g)")
    command(verify, "check every shipped weight and result against its manifest")
    checking = command(readme, "write the README's table of results from the committed notebooks")
    checking.add_argument("--check", action="store_true", help="only say whether it is up to date")
    return parser


if __name__ == "__main__":
    sys.exit(main())
