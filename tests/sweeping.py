"""Notebooks of seconds to sweep over, and what they write down while they run."""

import time
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.ledger import MIME
from helpers.sweeps import runs

PARAMETERS = """SEED: int = 0  # the first of the seeds
RATE: float = 0.5  # of something
METHOD: str = "plain"  # how
DIARY: str = ""  # the file that says which runs began and ended
OUT: str = ""  # folder of what is made"""

WORK = f"""import os, pathlib, subprocess, sys, time
from IPython.display import display
def note(*words):
    with open(DIARY, "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")
note("begin", SEED, os.getpid())
if SEED and not pathlib.Path(DIARY).with_name("go").exists():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note("child", SEED, child.pid)
    time.sleep(600)
pathlib.Path(OUT).mkdir(parents=True, exist_ok=True)
pathlib.Path(OUT, "weights.txt").write_text(str(SEED))
entry = dict(claim="a claim", reference=None, kind=None, spread=None, unit="", rule="", verdict="reproduced", where="")
entries = [entry | dict(key="doubled", ours=2 * SEED + RATE), entry | dict(key="words", ours="some text")]
note("end", SEED)
display({{"{MIME}": {{"study": "tiny", "entries": entries}}, "text/plain": "the ledger"}}, raw=True)"""


def write(folder: Path, *sources: str, parameters: str = PARAMETERS, name: str = "01_tiny") -> Path:
    """A notebook of these cells after one of parameters."""
    cells = [new_markdown_cell("# Tiny"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources]), path)
    return path


def plan(notebook: Path, store: Path, grid: list[dict], **options) -> list[runs.Job]:
    return runs.plan(notebook, grid, store, **options)


def seeds(n: int, diary: Path, **more) -> list[dict]:
    return [{"SEED": seed, "DIARY": str(diary), **more} for seed in range(n)]


def notes(diary: Path) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in diary.read_text().splitlines()] if diary.exists() else []


def wait_for(condition, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def results(jobs: list[runs.Job]) -> list[tuple]:
    """What the records say that does not depend on when and where they were made."""
    kept = ("identity", "notebook", "parameters", "status", "error", "verdict", "results")
    return [tuple(job.record()[name] for name in kept) for job in jobs]
