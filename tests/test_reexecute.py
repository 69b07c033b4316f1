"""Every notebook trained and evaluated anew in its quick preset, and bad parameters refused in words that help."""

import os

import pytest

from helpers.notebooks import execute, list_notebooks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

every_notebook = pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
QUICK = {"RETRAIN": True, "REEVALUATE": True, "PRESET": "quick"}


@every_notebook
def test_retrained_and_reevaluated_in_the_quick_preset(path, tmp_path):
    run = execute(path, tmp_path / path.name, QUICK | {"OUT": str(tmp_path / "out")}, timeout=800)
    assert run.status == "ok", run.traceback
    assert run.ledger["entries"], "the ledger is shown"
    assert any((tmp_path / "out").rglob("*.safetensors")), "what was trained lies in OUT"


@every_notebook
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"RETRIAN": True}, "unknown parameter RETRIAN: did you mean RETRAIN"),
        ({"SEED": "seven"}, "seed"),
        ({"PRESET": "quik"}, "did you mean quick"),
        ({"OVERRIDES": {"no.such": 1}}, "no.such"),
    ],
    ids=["misspelt name", "wrong type", "misspelt preset", "unknown setting"],
)
def test_a_bad_parameter_is_refused_by_name(path, tmp_path, parameters, message):
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
