"""What every notebook refuses, in words that help: bad parameters, folders that cannot be written, installations that
do not fit. Apart from `test_reexecute`, so that two can share the work."""

import os

import pytest
from test_training import broken_torchvision

from helpers.notebooks import execute, list_notebooks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

every_notebook = pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
QUICK = {"RETRAIN": True, "REEVALUATE": True, "PRESET": "quick"}

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
    """As beside the CPU-only torch 2.13.0: Fabric, which trains in every notebook, may import it."""
    (path,) = list_notebooks(["01"])
    env = broken_torchvision(tmp_path)
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(tmp_path / "out")}, timeout=300, env=env)
    assert run.status == "failed"
    assert run.error.startswith("TorchvisionError: torchvision cannot be imported beside torch"), run.traceback
    assert "pip install torch==" in run.error and run.traceback == f"Sightline: {run.error.split(': ', 1)[1]}"
