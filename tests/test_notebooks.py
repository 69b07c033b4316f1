"""Notebooks are executed within a time limit, one failure stops no other, and the pages say what happened."""

import os
import re
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import notebooks, report
from helpers.__main__ import main
from helpers.config import ConfigError

ROOT = Path(__file__).parents[1]
IMPORT = f"import sys; sys.path.insert(0, {str(ROOT)!r})"

GOOD = f"""{IMPORT}
from helpers.ledger import Ledger
ledger = Ledger("tiny")
ledger.within("area", "the area | of a disc", ours=3.14, reference=3.1, kind="paper", tolerance=RADIUS, where="1")
ledger.ordered("order", "it grows", [("a", 2), ("b", 1)], where="1")
ledger"""
FIGURE = """import matplotlib; matplotlib.use("agg")
from IPython.display import Image, display
import io, matplotlib.pyplot as plt
plt.figure(figsize=(1, 1)); buffer = io.BytesIO(); plt.savefig(buffer)
display(Image(buffer.getvalue()))"""
PRINT_PID = "import os; print('pid', os.getpid())"
HANG = "import ctypes; ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock: the kernel cannot end itself"


def write(path, *sources, title="A title", tags=()):
    cells = [
        new_markdown_cell(f"# {title}"),
        new_code_cell("RADIUS: float = 0.1  # comment", metadata={"tags": ["parameters"]}),
    ]
    cells += [new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = list(tags)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three notebooks: one that fails, one that hangs, one that is well."""
    folder = tmp_path_factory.mktemp("notebooks")
    write(folder / "01_fails.ipynb", "1 / 0", "print('never')", title="It <fails>")
    write(folder / "02_hangs.ipynb", PRINT_PID, HANG, title="It hangs")
    write(folder / "03_good.ipynb", GOOD, FIGURE, title="All is well", tags=["key-figure"])
    return folder


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return report.run_all(out, folder=folder, timeout=20)


def test_one_failure_stops_no_other(runs):
    assert [(run.name, run.status) for run in runs] == [
        ("01_fails", "failed"),
        ("02_hangs", "timeout"),
        ("03_good", "ok"),
    ]


def test_a_failure_keeps_the_notebook_and_names_its_error(runs):
    failed = runs[0]
    assert failed.error == "ZeroDivisionError: division by zero"
    assert "1 / 0" in failed.traceback and "\x1b" not in failed.traceback
    assert "never" not in failed.path.read_text().replace("print('never')", "")


def test_what_is_kept_of_a_failure_says_on_top_why(runs):
    failed, hung, _ = (notebooks.read(run.path).cells[0] for run in runs)
    assert failed.source.startswith("**failed** · ZeroDivisionError: division by zero")
    assert "1 / 0" in failed.source and "\x1b" not in failed.source
    assert hung.source.startswith("**timeout** · still running after 20 s")
    assert [run.title for run in runs] == ["It <fails>", "It hangs", "All is well"]
    assert "papermill-error" not in runs[0].path.read_text(), "said once"
    assert "ZeroDivisionError" in runs[0].page.read_text().split("It &lt;fails&gt;")[0]


def test_a_hanging_notebook_is_ended_with_its_kernel_and_what_it_printed_is_kept(runs):
    hung = runs[1]
    assert "20 s" in hung.error and hung.seconds < 30
    kernel = int(re.search(r"pid (\d+)", hung.path.read_text()).group(1))
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE


def test_ledger_and_figure_are_read_from_the_file(runs):
    good = runs[2]
    assert good.title == "All is well"
    assert report.verdict(good) == "1 of 1 reproduced, 0 of 1 of our own hold"
    assert good.figure.startswith(b"\x89PNG")


def test_the_index_lists_all_with_verdict_status_and_traceback(runs):
    page = (runs[0].path.parent / "index.html").read_text()
    assert page.count("<article") == 3
    for text in (
        "It &lt;fails&gt;",
        "ZeroDivisionError",
        "Traceback",
        "1 of 1 reproduced, 0 of 1 of our own hold",
        "data:image/png;base64",
        "2 did not finish",
    ):
        assert text in page
    assert "<details" in page and "python 3." in page
    assert not re.search(r'(src|href)="(https?:)?//', page), "the page must not need a network"
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (runs[0].path.parent / link).exists()


def test_the_links_of_a_run_stand_apart(runs):
    good = runs[2]
    read, notebook = '<a href="03_good.html">Read</a>', '<a href="03_good.ipynb">Notebook</a>'
    assert f"{read} · {notebook}" in report.index([good])
    elsewhere = report.index([notebooks.Run(Path("nowhere.ipynb"), "gone", "failed")])
    assert "Notebook</a>" not in elsewhere and "Read" not in elsewhere
    only = report.index([notebooks.replace(good, path=good.path.with_name("only.html"))])
    assert "> · <" not in only


def test_the_memory_is_that_of_the_kernel_and_of_what_it_starts(tmp_path):
    child = "b = bytearray(b'x') * 200_000_000; import time; time.sleep(2)"
    parent = "a = bytearray(b'x') * 100_000_000; import subprocess, sys"
    path = write(tmp_path / "01_a.ipynb", f"{parent}; subprocess.run([sys.executable, '-c', {child!r}])")
    run = notebooks.execute(path, tmp_path / "out.ipynb", timeout=60)
    assert run.status == "ok" and 300e6 < run.memory < 800e6
    assert f"{run.memory / 1e9:.1f} GB of memory" in report.index([run])
    assert notebooks.refresh(path).memory == pytest.approx(notebooks.collect(path).memory, abs=1e6)


def test_the_pages_of_notebooks_hold_figures_and_errors(runs):
    failed, _, good = (run.path.with_suffix(".html").read_text() for run in runs)
    assert "ZeroDivisionError" in failed
    assert "data:image/png;base64" in good and "the area | of a disc" in good


def test_parameters_keep_their_types(tmp_path):
    given = {"A": 1e-05, "B": True, "C": "1", "D": [1, 2.5], "E": {"a.b": None}}
    names = "\n".join(f"{name} = None" for name in given)
    source = nbformat.v4.new_code_cell(names, metadata={"tags": ["parameters"]})
    show = new_code_cell("print([A, B, C, D, E])")
    nbformat.write(new_notebook(cells=[source, show]), tmp_path / "01_a.ipynb")
    run = notebooks.execute(tmp_path / "01_a.ipynb", tmp_path / "out" / "a.ipynb", given, timeout=60)
    assert run.status == "ok", run.error
    assert str(list(given.values())) in run.path.read_text()


def test_what_the_source_shows_is_not_taken_for_the_run_that_never_began(tmp_path):
    path = write(tmp_path / "01_a.ipynb", "pass")
    notebook = notebooks.read(path)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("error", ename="Old", evalue="news", traceback=["old"])]
    nbformat.write(notebook, path)
    run = notebooks.execute(path, tmp_path / "out.ipynb", timeout=0.05)
    assert (run.status, run.traceback) == ("timeout", "")


def test_what_trains_or_evaluates_anew_may_take_a_day_unless_told_otherwise(tmp_path, monkeypatch):
    long, usual = notebooks.LONG_TIMEOUT, notebooks.TIMEOUT
    assert (usual, long) == (30 * 60, 24 * 60 * 60)
    assert {notebooks.time_limit(given) for given in (None, {}, {"SEED": 3}, {"RETRAIN": False})} == {usual}
    assert {notebooks.time_limit({name: True, "SEED": 3}) for name in ("RETRAIN", "REEVALUATE")} == {long}
    monkeypatch.setattr(notebooks, "TIMEOUT", 0.01)
    monkeypatch.setattr(notebooks, "LONG_TIMEOUT", 0.02)
    path, out = write(tmp_path / "01_a.ipynb", "pass"), tmp_path / "out.ipynb"
    for options, seconds in [({}, 0.01), ({"parameters": {"RETRAIN": True}}, 0.02), ({"timeout": 0.03}, 0.03)]:
        assert notebooks.execute(path, out, **options).error == f"still running after {seconds} s, so it was ended"


def test_a_notebook_that_papermill_cannot_start_is_a_failure_with_a_reason(tmp_path):
    (tmp_path / "papermill.py").write_text("raise SystemExit('papermill is broken')")
    path = write(tmp_path / "01_a.ipynb", "pass")
    run = notebooks.execute(path, tmp_path / "out.ipynb", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (run.status, run.error) == ("failed", "papermill is broken")
    assert [cell.source for cell in notebooks.read(run.path).cells][::3] == ["**failed** · papermill is broken\n"
        "\n<pre>papermill is broken</pre>", "pass"], "the notebook is kept"


def test_refresh_stores_outputs_without_what_changes_at_every_run(tmp_path):
    path = write(tmp_path / "01_a.ipynb", "import ipywidgets; ipywidgets.IntSlider()", "print(7 * 6)")
    assert notebooks.refresh(path).status == "ok"
    notebook = notebooks.read(path)
    assert notebook.cells[-1].outputs[0].text == "42\n"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "sightline"}
    assert all(not cell.metadata.keys() - {"tags"} for cell in notebook.cells)
    assert notebooks.collect(path).seconds > 0


def test_refresh_leaves_the_notebook_alone_if_it_fails(tmp_path):
    path = write(tmp_path / "01_a.ipynb", "1 / 0")
    before = path.read_text()
    assert notebooks.refresh(path).error.startswith("ZeroDivisionError")
    assert path.read_text() == before


def test_notebooks_are_chosen_by_number_or_name(folder):
    names = lambda *wanted: [path.stem for path in notebooks.list_notebooks(wanted, folder)]  # noqa: E731
    assert names() == ["01_fails", "02_hangs", "03_good"]
    assert names("3", "01") == names("03_good", "01_fails.ipynb") == ["01_fails", "03_good"]
    with pytest.raises(ValueError, match="no notebook '03_goood': did you mean 03_good"):
        names("03_goood")


def test_the_readme_table_is_made_of_the_ledgers(runs):
    readme = f"# Title\n{report.BEGIN}\nold\n{report.END}\nrest\n"
    new = report.with_results(readme, runs[2:])
    assert new.startswith(f"# Title\n{report.BEGIN}\n| notebook |") and new.endswith(f"{report.END}\nrest\n")
    overview, folded = new.split("<details>")
    verdict = "1 of 1 reproduced, 0 of 1 of our own hold"
    assert f"| **[03_good](notebooks/03_good.ipynb)** | All is well | {verdict} |" in overview
    assert f"<summary>03_good: {verdict}</summary>\n\n| claim |" in folded
    assert "| the area \\| of a disc | 3.1 (paper) | 3.14 | ✓ reproduced |\n" in folded
    assert report.with_results(new, runs[2:]) == new
    with pytest.raises(ValueError, match="ledger:begin"):
        report.with_results("no markers", runs)


def test_the_command_line_says_what_is_wrong(capsys):
    assert main(["run", "99"]) == 2
    assert "no notebook '99'" in capsys.readouterr().err
    assert main(["run", "01", "-p", "SEED", "1", "-p", "SEED", "2"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["run", "01", "--timeout", "-1"]) == 2
    assert "--timeout -1.0" in capsys.readouterr().err
    assert main(["run", "01", "--out", __file__]) == 2
    assert __file__ in capsys.readouterr().err


def test_a_notebook_is_never_overwritten_by_its_outputs(folder):
    (notebook, *_) = sorted(folder.glob("*.ipynb"))
    before = notebook.read_bytes()
    with pytest.raises(ConfigError, match="would be overwritten by its outputs"):
        notebooks.execute(notebook, notebook)
    assert notebook.read_bytes() == before


def test_parameters_are_checked_before_any_notebook_is_executed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "execute", lambda *_: pytest.fail("executed"))
    with pytest.raises(ValueError, match="01_fails: unknown parameter RADUIS: did you mean RADIUS"):
        report.run_all(tmp_path, folder=folder, parameters={"RADUIS": 1.0})
    with pytest.raises(ValueError, match="RADIUS must be float, not 'wide'"):
        report.run_all(tmp_path, ["02"], {"radius": "wide"}, folder=folder)
    assert not any(tmp_path.iterdir())


def test_the_command_line_runs_with_typed_parameters_and_its_exit_code_tells_of_failures(monkeypatch, tmp_path):
    asked = []

    def run_all(*given):
        asked.append(given)
        return [notebooks.Run(tmp_path / "01_a.ipynb", "A", status) for status in ("ok", "failed")]

    monkeypatch.setattr(report, "run_all", run_all)
    assert (
        main(["run", "01", "--out", str(tmp_path), "--timeout", "9", "-p", "SEED", "7", "-p", "PRESET", "quick"]) == 1
    )
    assert main(["run", "01", "--out", str(tmp_path), "-p", "RETRAIN", "True"]) == 1
    assert asked == [
        (tmp_path, ["01"], {"SEED": 7, "PRESET": "quick"}, 9.0),
        (tmp_path, ["01"], {"RETRAIN": True}, None),  # what the notebook is allowed, see `notebooks.time_limit`
    ]
