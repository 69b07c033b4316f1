"""The command line: ``python -m helpers run | sweep | push | pull | refresh | verify | readme``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from . import hub, notebooks, report
from .artifacts import verify_tree
from .config import ROOT, ConfigError, PlainError, literal
from .notebooks import LONG, LONG_TIMEOUT, TIMEOUT


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 where something failed or is stale."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    given = _parser().parse_args(arguments)
    try:
        for name in ("workers", "threads", "timeout"):
            if (value := getattr(given, name, None)) is not None and not value > 0:
                raise ConfigError(f"--{name} {value}: it has to be above 0")
        return given.command(given)
    except (PlainError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(given: argparse.Namespace) -> int:
    parameters = {name: literal(text) for name, text in given.parameters}
    if len(parameters) < len(given.parameters):
        raise ConfigError("a parameter was given twice: `sweep` takes several values, as in -p SEED 0,1")
    executed = report.run_all(given.out, given.notebooks, parameters, given.timeout)
    print(f"\n{given.out / 'index.html'}")
    return int(not executed or any(run.status != "ok" for run in executed))


def sweep(given: argparse.Namespace) -> int:
    from .sweeps import engines, grid, page, runs  # pandas and matplotlib take a second to import
    from .sweeps import sweep as sweeping

    wanted = notebooks.list_notebooks(given.notebooks)
    if given.engine == "dask" and not given.address:
        raise ConfigError("--engine dask needs the --address of a scheduler, such as tcp://10.0.0.5:8786")
    combinations = grid.grid(given.parameters)
    threads = given.threads or (None if given.engine == "dask" else engines.share_of_cores(given.workers))
    options = {"timeout": given.timeout, "retries": given.retries, "threads": threads}
    jobs = {path: runs.plan(path, combinations, given.out, **options) for path in wanted}
    every = [job for several in jobs.values() for job in several]
    if given.dry_run:
        print(sweeping.listing(every))
        return 0

    def publish(running: bool) -> None:
        for path, several in jobs.items():
            page.publish(given.out / path.stem, path, several, running)

    engine = engines.dask(given.address) if given.engine == "dask" else engines.local(given.workers)
    ends = sweeping.execute(every, engine, publish)
    print("\n" + "\n".join(str(given.out / path.stem / "index.html") for path in jobs))
    return int(ends["ok"] < len(every))


def refresh(given: argparse.Namespace) -> int:
    failed = 0
    for path in notebooks.list_notebooks(given.notebooks):
        executed = notebooks.refresh(path, given.timeout)
        print(f"{executed.name}: {executed.status} {executed.error}")
        failed += executed.status != "ok"
    return int(failed > 0)


def verify(given: argparse.Namespace) -> int:
    problems, n_files = verify_tree(ROOT)
    print("\n".join(problems) or f"{n_files} files verified")
    return int(bool(problems))


def push(given: argparse.Namespace) -> int:
    commit = hub.push(given.study, given.hub, public=given.public)
    print(f"python -m helpers pull {given.study} --hub {given.hub} --revision {commit}")
    return 0


def pull(given: argparse.Namespace) -> int:
    hub.pull(given.study, given.hub, given.revision)
    return 0


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
                         help="a notebook parameter or setting, in Python's spelling: -p RETRAIN True")  # fmt: skip
    sweeps = command(sweep, "execute notebooks over a grid of parameters; what is done already is not done again")
    sweeps.add_argument("--out", type=Path, default=ROOT / "runs" / "sweeps", help="folder of all sweeps (runs/sweeps)")
    sweeps.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"),
                        help="values with commas between, and ranges: -p SEED 0:5 -p PRESET quick,paper")  # fmt: skip
    sweeps.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time on this machine (1)")
    sweeps.add_argument("--threads", type=int, metavar="N", help="threads a run (the cores divided by the workers)")
    sweeps.add_argument("--retries", type=int, choices=range(3), default=2,
                        help="more attempts at a run that fails (%(default)s)")  # fmt: skip
    sweeps.add_argument("--engine", choices=("local", "dask"), default="local", help="who executes the runs")
    sweeps.add_argument("--address", default="", help="of the Dask scheduler: tcp://host:8786")
    sweeps.add_argument("--dry-run", action="store_true", help="only list the runs and what is known of them")
    sweeps.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="number or name, such as 04")
    refreshing = command(refresh, "execute notebooks with their default parameters and store the outputs in them")
    for added in (running, refreshing):
        added.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="number or name, such as 01; none: all")
    usual = f"{TIMEOUT:g}; {LONG_TIMEOUT:g} with {' or '.join(LONG)}"
    for added in (running, refreshing, sweeps):
        added.add_argument("--timeout", type=float, metavar="S", help=f"seconds each ({usual})")
    command(verify, "check every shipped weight and result against its manifest")
    pushing = command(push, "commit a study's weights and results to the Hugging Face Hub")
    pushing.add_argument("--public", action="store_true", help="make a repository that everyone can read")
    pulling = command(pull, "put a study's set from the Hugging Face Hub in the place of the shipped one")
    pulling.add_argument("--revision", default="main", help="commit, tag or branch (main)")
    for added in (pushing, pulling):
        added.add_argument("study", help="its folder's name in weights/ and results/, such as toyshapes")
        added.add_argument("--hub", required=True, metavar="OWNER/NAME", help="repository of the Hub")
    checking = command(readme, "write the README's table of results from the committed notebooks")
    checking.add_argument("--check", action="store_true", help="only say whether it is up to date")
    return parser


if __name__ == "__main__":
    sys.exit(main())
