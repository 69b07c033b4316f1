"""Every notebook trained and evaluated anew in its quick preset, any groups alone, and several seeds of one."""

import subprocess
import sys

import pandas as pd
import pytest

from helpers import artifacts
from helpers.config import ROOT
from helpers.notebooks import execute, list_notebooks, read
from helpers.pinets.presets import LABELS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

every_notebook = pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
QUICK = {"RETRAIN": True, "REEVALUATE": True, "PRESET": "quick"}


@every_notebook
def test_retrained_and_reevaluated_in_the_quick_preset(path, tmp_path):
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(tmp_path / "out")}, timeout=800)
    assert run.status == "ok", run.traceback
    assert run.ledger["entries"], "the ledger is shown"
    assert run.memory < 4e9, "peak memory, here of training"
    assert any((tmp_path / "out").rglob("*.safetensors")), "what was trained lies in OUT"


# ------------------------------------------------------------------------------------------------- ToyShapes


# The lines that stand in for what cannot be shown without the CNN, an ensemble, ...; the full set prints none of them.
MISSING = {
    "identity": "No identity to draw",
    "unstretched": "No unstretched maps",
    "rules": "No rules of voting to compare",
    "examples": "No examples",
    "methods": "No post-hoc methods to compare",
}


@pytest.mark.parametrize(
    ("groups", "missing"),
    [
        (["cnn"], ["identity", "unstretched", "rules"]),
        (["ensemble", "naive"], ["unstretched", "examples", "methods"]),
    ],
    ids=["cnn", "ensemble and naive"],
)
def test_toyshapes_runs_through_with_any_groups(tmp_path, groups, missing):
    (path,) = list_notebooks(["01"])
    run = execute(path, tmp_path / path.name, {"GROUPS": groups, "OUT": str(tmp_path / "out")}, timeout=300)
    assert run.status == "ok", run.traceback
    outputs = [output for cell in read(run.path).cells for output in cell.get("outputs", [])]
    printed = [output.get("text") or output.data.get("text/plain", "") for output in outputs]
    assert [name for name, line in MISSING.items() if any(text.startswith(line) for text in printed)] == missing
    for entry in run.ledger["entries"]:
        group = entry["key"].rsplit("-", 1)[-1]
        if group in LABELS and group not in groups:
            assert (entry["verdict"], entry["ours"]) == ("not verified", None), entry


def test_toyshapes_sweeps_over_seeds(tmp_path):
    """The README's command for two seeds in the quick preset: each its own run, and nothing to do the second time."""
    words = ["sweep", "01", "-p", "SEED", "0:2", "-p", "RETRAIN", "True", "-p", "PRESET", "quick", "-p", "groups"]
    words += ["['naive']", "-p", "test_images", "20", "--workers", "2", "--timeout", "600", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "helpers", *words]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0 and "2 to execute, 2 at a time" in first.stdout, first.stdout + first.stderr
    table = pd.read_csv(tmp_path / "01_toyshapes" / "runs.csv")
    assert list(table.SEED) == [0, 1] and set(table.status) == {"ok"} and table.minutes.gt(0).all()
    assert table["naive_score-naive"].nunique() == 2, "each seed is another network on other images"
    for run, seed in zip(table.run, table.SEED, strict=True):
        out = tmp_path / "01_toyshapes" / run / "out"
        record = artifacts.load_json(out / "results" / "fits" / "naive" / f"{seed}.json")
        assert record["fit"] == f"naive/{seed}" and (out / "weights" / "naive" / f"{seed}.safetensors").exists()
    page = (tmp_path / "01_toyshapes" / "index.html").read_text()
    assert "Results against SEED" in page and all(f'href="{run}/01_toyshapes.html"' in page for run in table.run)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "2 runs: 2 ok" in again.stdout and "to execute" not in again.stdout
