"""Every notebook trained and evaluated anew in its quick preset, any groups alone, and bad parameters and
installations refused in words that help."""

import os
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


BAD = {
    "misspelt preset": ({"PRESET": "quik"}, "did you mean quick"),  # each notebook has its own
    "misspelt name": ({"RETRIAN": True}, "unknown parameter RETRIAN: did you mean RETRAIN"),
    "wrong type": ({"SEED": "seven"}, "seed"),
    "unknown setting": ({"OVERRIDES": {"no.such": 1}}, "no.such"),
}


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, kind) for path in list_notebooks() for kind in (BAD if path.stem.startswith("01") else list(BAD)[:1])],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_bad_parameter_is_refused_by_name(path, kind, tmp_path):
    """The cell that checks them is the same everywhere: one notebook meets every kind of mistake."""
    parameters, message = BAD[kind]
    run = execute(path, tmp_path / path.name, parameters, timeout=120)
    assert run.status == "failed"
    assert message in run.error and len(run.error) < 300, run.traceback


@every_notebook
def test_an_out_that_cannot_be_written_is_refused_by_name(path, tmp_path):
    """A read-only folder does not stop root; a path below a file stops everyone."""
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(out)}, timeout=300)
    assert run.status == "failed"
    assert str(tmp_path / "file") in run.error, run.traceback


@every_notebook
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_out_is_refused_by_name(path, tmp_path):
    (out := tmp_path / "out").mkdir(mode=0o500)
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(out)}, timeout=300)
    assert run.status == "failed"
    assert str(out) in run.error, run.traceback


def test_a_torchvision_that_does_not_fit_is_explained_in_one_line(tmp_path):
    """As beside the CPU-only torch 2.13.0: lightning, which trains in every notebook, imports it."""
    (path,) = list_notebooks(["01"])
    (tmp_path / "torchvision").mkdir()
    source = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(tmp_path / "out")}, timeout=300, env=env)
    assert run.status == "failed"
    assert run.error.startswith("TorchvisionError: torchvision cannot be imported beside torch"), run.traceback
    assert "pip install torch==" in run.error and run.traceback == f"Sightline: {run.error.split(': ', 1)[1]}"


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


def test_toyshapes_sweeps_over_four_seeds(tmp_path):
    """The command of the README in the quick preset: runs of their own seeds, and nothing to do the second time."""
    words = ["sweep", "01", "-p", "SEED", "0:4", "-p", "RETRAIN", "True", "-p", "PRESET", "quick", "-p", "groups"]
    words += ["['naive']", "--workers", "2", "--timeout", "600", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "helpers", *words]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0 and "4 to execute, 2 at a time" in first.stdout, first.stdout + first.stderr
    table = pd.read_csv(tmp_path / "01_toyshapes" / "runs.csv")
    assert list(table.SEED) == [0, 1, 2, 3] and set(table.status) == {"ok"} and table.minutes.gt(0).all()
    assert table["naive_score-naive"].nunique() == 4, "each seed is another network on other images"
    for run, seed in zip(table.run, table.SEED, strict=True):
        out = tmp_path / "01_toyshapes" / run / "out"
        record = artifacts.load_json(out / "results" / "fits" / "naive" / f"{seed}.json")
        assert record["fit"] == f"naive/{seed}" and (out / "weights" / "naive" / f"{seed}.safetensors").exists()
    page = (tmp_path / "01_toyshapes" / "index.html").read_text()
    assert "Results against SEED" in page and all(f'href="{run}/01_toyshapes.html"' in page for run in table.run)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "4 runs: 4 ok" in again.stdout and "to execute" not in again.stdout
