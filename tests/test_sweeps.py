"""A sweep killed anywhere, whole or a worker of it, loses nothing and doubles nothing; the same on a Dask cluster."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sweeping
from distributed import Client, LocalCluster
from filelock import FileLock
from sweeping import alive, notes, results, seeds, wait_for

from helpers import notebooks
from helpers.__main__ import main
from helpers.config import ConfigError
from helpers.sweeps import engines, page, runs, sweep, table
from helpers.sweeps.grid import grid, values

ROOT = Path(__file__).parents[1]

SWEEP = """import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import sweeping
from helpers.sweeps import engines, sweep
notebook, store, diary = map(Path, sys.argv[1:])
jobs = sweeping.plan(notebook, store, sweeping.seeds(3, diary), timeout=600)
sweep.execute(jobs, engines.local(2), lambda running: None)
"""


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(jobs, diary, how it ended) of a sweep of three: killed in the middle with -9, begun again, and then one of its
    kernels killed with -9."""
    folder = tmp_path_factory.mktemp("sweep")
    notebook, diary, store = sweeping.write(folder / "notebooks", sweeping.WORK), folder / "diary", folder / "store"
    script = SWEEP.format(root=str(ROOT), tests=str(ROOT / "tests"))
    arguments = [sys.executable, "-c", script, str(notebook), str(store), str(diary)]
    jobs = sweeping.plan(notebook, store, seeds(3, diary), timeout=600)
    with subprocess.Popen(arguments) as process:
        wait_for(lambda: jobs[0].record() and ("child", "2") in {note[:2] for note in notes(diary)})
        process.kill()
    family = [int(note[2]) for note in notes(diary) if note[0] in ("begin", "child")]
    wait_for(lambda: not any(map(alive, family)), seconds=20)
    before = notes(diary)
    jobs = sweeping.plan(notebook, store, seeds(3, diary), timeout=600)
    with ThreadPoolExecutor() as pool:
        ends = pool.submit(sweep.execute, jobs, engines.local(1), lambda running: None)
        wait_for(lambda: ("child", "1") in {note[:2] for note in notes(diary)[len(before) :]})
        (folder / "go").touch()
        os.kill(next(int(note[2]) for note in notes(diary)[len(before) :] if note[0] == "begin"), signal.SIGKILL)
        return jobs, diary, before, ends.result()


@pytest.mark.slow
def test_what_a_killed_sweep_had_finished_is_not_done_again(swept):
    jobs, diary, before, ends = swept
    assert ends == Counter(ok=3)
    assert [note for note in before if note[0] == "end"] == [("end", "0")]
    after = notes(diary)[len(before) :]
    assert Counter(note[1] for note in after if note[0] == "begin") == {"1": 2, "2": 1}, "1 lost its kernel"
    assert sorted(note for note in notes(diary) if note[0] == "end") == [("end", "0"), ("end", "1"), ("end", "2")]


@pytest.mark.slow
def test_a_kernel_that_was_killed_is_a_lost_attempt_and_its_children_die(swept):
    jobs, diary, *_ = swept
    records = [job.record() for job in jobs]
    assert [[attempt["status"] for attempt in record["attempts"]] for record in records] == [
        ["ok"], ["failed", "ok"], ["ok"]
    ]  # fmt: skip
    assert "Kernel died" in records[1]["attempts"][0]["error"]
    assert not [note for note in notes(diary) if note[0] == "child" and alive(int(note[2]))]


@pytest.mark.slow
def test_each_run_has_its_folder_its_results_and_its_page(swept):
    jobs = swept[0]
    for seed, job in enumerate(jobs):
        assert (job.folder / "out" / "weights.txt").read_text() == str(seed)
        assert (job.folder / "01_tiny.html").exists() and (job.folder / "01_tiny.ipynb").exists()
        assert job.record()["results"] == {"doubled": 2 * seed + 0.5, "words": "some text"}
        assert job.record()["parameters"]["SEED"] == seed


@pytest.mark.slow
def test_the_table_and_the_page_show_every_run(swept):
    jobs = swept[0]
    folder, notebook = jobs[0].folder.parent, Path(jobs[0].notebook)
    more = sweeping.plan(notebook, folder.parent, seeds(4, swept[1]))
    shown = page.publish(folder, notebook, more, running=True)
    assert list(shown.SEED) == [0, 1, 2, 3] and list(shown.status) == ["ok"] * 3 + ["waiting"]
    assert list(shown.doubled[:3]) == [0.5, 2.5, 4.5] and list(shown.words[:3]) == ["some text"] * 3
    assert list(shown.attempts[:3]) == [1, 2, 1] and all(shown.minutes[:3] > 0) and shown.current.all()
    csv = pd.read_csv(folder / "runs.csv")
    pd.testing.assert_frame_equal(csv, pd.read_parquet(folder / "runs.parquet"), check_dtype=False)
    html = (folder / "index.html").read_text()
    assert html.count('http-equiv="refresh"') == 1 and "Results against SEED" in html and "a claim" in html
    links = {link for job in jobs for link in (f"{job.identity}/01_tiny.html", f"{job.identity}/01_tiny.ipynb")}
    assert all(f'href="{link}"' in html and (folder / link).exists() for link in links)
    page.publish(folder, notebook, jobs)
    assert 'http-equiv="refresh"' not in (folder / "index.html").read_text()


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_gives_the_serial_results(swept, tmp_path):
    serial, diary = swept[:2]
    before, go = len(notes(diary)), diary.with_name("go")
    go.unlink()
    jobs = sweeping.plan(Path(serial[0].notebook), tmp_path, seeds(3, diary), timeout=600)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        ThreadPoolExecutor() as pool,
    ):
        ends = pool.submit(sweep.execute, jobs, engines.dask(cluster.scheduler_address), lambda running: None)
        wait_for(lambda: {("child", "1"), ("child", "2")} <= {note[:2] for note in notes(diary)[before:]})
        lost = [int(note[2]) for note in notes(diary)[before:] if note[0] in ("begin", "child")]
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        wait_for(lambda: sum(map(alive, lost)) == 2, seconds=20)
        go.touch()
        for pid in filter(alive, lost):  # the other worker's notebook would sleep on: it is tried again
            os.kill(pid, signal.SIGKILL)
        assert ends.result() == Counter(ok=3)
    assert results(jobs) == results(serial)
    assert Counter(note for note in notes(diary)[before:] if note[0] == "end") == Counter(
        [("end", "0"), ("end", "1"), ("end", "2")]
    )


# ------------------------------------------------------------------------------------------------ the command line


def test_values_are_literals_words_ranges_and_lists():
    assert values("0:5") == [0, 1, 2, 3, 4] and values("10:0:-5,7") == [10, 5, 7]
    assert values("0.02,0.05") == [0.02, 0.05] and values("True,None,quick") == [True, None, "quick"]
    assert values("[0,1],[2]") == [[0, 1], [2]] and values("(0.9,0.95)") == [(0.9, 0.95)]
    assert values("'a,b',\"c\"") == ["a,b", "c"] and values("resnet18@layer2,timm:resnet10t") == [
        "resnet18@layer2", "timm:resnet10t"
    ]  # fmt: skip
    assert values("{'a': [1, 2]}") == [{"a": [1, 2]}] and values("''") == [""]


@pytest.mark.parametrize("text", ["", "1,", "5:0", "0:3:0", "0:1000000"])
def test_no_values_are_a_mistake(text):
    with pytest.raises(ConfigError):
        values(text)


def test_a_grid_is_every_combination_the_last_name_fastest():
    assert grid([("A", "0:2"), ("B", "x,y")]) == [
        {"A": 0, "B": "x"}, {"A": 0, "B": "y"}, {"A": 1, "B": "x"}, {"A": 1, "B": "y"}
    ]  # fmt: skip
    assert grid([]) == [{}]
    with pytest.raises(ConfigError, match="A is given twice"):
        grid([("A", "1"), ("A", "2")])
    with pytest.raises(ConfigError, match="B is to be 1 more than once"):
        grid([("B", "1,2,1")])
    with pytest.raises(ConfigError, match="1,000,000 runs"):
        grid([("A", "0:1000"), ("B", "0:1000")])


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The notebooks folder has one notebook, 01_tiny, that sweeps of the command line are of."""
    notebook = sweeping.write(tmp_path / "notebooks", sweeping.WORK)
    monkeypatch.setattr(notebooks.list_notebooks, "__defaults__", ((), notebook.parent))
    return notebook


def test_a_dry_run_lists_the_grid_and_executes_nothing(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("executed"))
    words = ["-p", "seed", "0:2", "-p", "METHOD", "plain,fancy", "--dry-run", "--out", str(tmp_path / "s")]
    assert main(["sweep", "1", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("SEED=") == 4 and "SEED=1 METHOD=fancy" in printed and "4 runs: 4 new" in printed
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["-p", "SED", "1"], "unknown parameter SED: did you mean SEED"),
    (["-p", "SEED", "0:2,x"], "SEED must be int, not 'x'"),
    (["-p", "OUT", "there"], "an OUT of its own"),
    (["-p", "SEED", "0", "-p", "seed", "1"], "seed is given twice"),
    (["--workers", "0"], "--workers 0: it has to be above 0"),
    (["--threads", "-3"], "--threads -3: it has to be above 0"),
    (["--timeout", "0"], "--timeout 0.0: it has to be above 0"),
    (["--engine", "dask"], "--address"),
    (["--engine", "dask", "--address", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tiny, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("executed"))
    monkeypatch.setattr(engines, "CONNECT", 0.5)
    assert main(["sweep", "01", "--out", str(tmp_path / "s"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_over_seeds_that_does_not_train_is_warned_of_once(tmp_path, caplog):
    def warnings(*words):
        caplog.clear()
        with caplog.at_level("INFO"):
            assert main(["sweep", "04", *words, "--dry-run", "--out", str(tmp_path)]) == 0
        return [message for message in caplog.messages if message.startswith("04_self_explaining")]

    seeds = "-p", "SEED", "0:3"
    warned = ["04_self_explaining: SEED is swept and RETRAIN is not given; seeds that are not shipped need "
              "-p RETRAIN True"]  # fmt: skip
    told = "04_self_explaining: few_shot_train is taken for FEW_SHOT_TRAIN_PERCENT"
    assert warnings(*seeds, "-p", "few_shot_train", "0.02,0.05") == [told, *warned]
    assert warnings(*seeds, "-p", "REEVALUATE", "True") == warned
    assert warnings(*seeds, "-p", "RETRAIN", "True") == warnings("-p", "SEED", "3") == []


def test_without_dask_its_engine_says_what_to_install(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["sweep", "01", "--out", str(tmp_path), "--engine", "dask", "--address", "tcp://127.0.0.1:9"]) == 2
    assert "pip install distributed" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the page


def a_table():
    """Two rates, two methods, three seeds: accuracy = rate + seed / 100, twice that for the method fancy."""
    rows = [
        {"run": f"{rate}{method}{seed}", "status": "ok", "current": True, "RATE": rate, "METHOD": method,
         "SEED": seed, "accuracy": (rate + seed / 100) * (1 + (method == "fancy")), "words": "good"}
        for rate in (0.1, 0.2) for method in ("plain", "fancy") for seed in range(3)
    ]  # fmt: skip
    rows += [rows[0] | {"status": "failed", "accuracy": None}, rows[1] | {"current": False, "accuracy": 99.0}]
    return pd.DataFrame(rows)


def drawn(figure, kind, key, label=""):
    (line,) = [line for ax in figure.axes for line in ax.lines if line.get_gid() == f"{kind}:{key}:{label}"]
    return line.get_xdata(), line.get_ydata()


def test_results_are_drawn_against_each_swept_parameter():
    table, claims = a_table(), {"accuracy": "how often it is right", "words": "no number"}
    names = ["RATE", "METHOD", "SEED"]
    figure = page.against(table, "RATE", names, claims)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["accuracy"], "words are not drawn"
    x, y = drawn(figure, "runs", "accuracy", "fancy")
    assert sorted(y) == pytest.approx([0.2, 0.22, 0.24, 0.4, 0.42, 0.44]) and sorted(x) == [0.1] * 3 + [0.2] * 3
    assert drawn(figure, "means", "accuracy", "plain")[1] == pytest.approx([0.11, 0.21]), "seeds are averaged"
    assert [text.get_text() for text in figure.legends[0].texts] == ["fancy", "plain"]
    by_method = page.against(table, "METHOD", names, claims)
    assert [tick.get_text() for tick in by_method.axes[0].get_xticklabels()] == ["fancy", "plain"]
    assert drawn(by_method, "means", "accuracy", "0.2")[1] == pytest.approx([0.42, 0.21])
    alone = page.against(table[table.METHOD == "plain"], "SEED", ["SEED"], claims)
    assert len(drawn(alone, "runs", "accuracy")[0]) == 6 and len(alone.axes[0].lines) == 1, "no line through seeds"
    assert page.against(table, "RATE", names, {"words": "no number"}) is None


# -------------------------------------------------------------------------------- one run, its attempts and its record


@pytest.fixture
def executed(tiny, tmp_path, monkeypatch):
    """``executed(*outcomes)``: what the executions come to, one after the other. Returns the list of them."""
    calls = []

    def prepare(*outcomes):
        def execute(notebook, out, parameters, timeout, env, stopped, mark):
            calls.append((parameters, env, timeout))
            if stopped():
                raise notebooks.Stopped
            return replace(outcomes[len(calls) - 1], path=out)

        monkeypatch.setattr(notebooks, "execute", execute)
        return calls

    return prepare


def outcome(status="ok", error="", **more):
    return notebooks.Run(Path("x.ipynb"), "tiny", status, 1.0, error=error, **more)


LOST, LATE = outcome("failed", "the process was killed"), outcome("timeout", "still running")
RAISED = outcome("failed", "ZeroDivisionError: division by zero", cell_failed=True)
OTHER = outcome("failed", "OSError: no space", cell_failed=True)
REFUSED = outcome("failed", "ConfigError: unknown parameter", cell_failed=True)


@pytest.mark.parametrize(("outcomes", "retries", "tried"), [
    ([LOST, LOST, LOST], 2, 3),  # at most two retries
    ([LATE, LOST, outcome()], 2, 3),
    ([LATE], 0, 1),
    ([RAISED, RAISED], 2, 2),  # the same error twice is no accident
    ([RAISED, OTHER, RAISED], 2, 3),
    ([REFUSED], 2, 1),  # it says what to do
    ([outcome()], 2, 1),
])  # fmt: skip
def test_what_is_tried_again(tiny, tmp_path, executed, outcomes, retries, tried):
    calls = executed(*outcomes)
    (job,) = sweeping.plan(tiny, tmp_path / "s", [{"SEED": 1}], retries=retries)
    record = runs.run(job)
    assert len(calls) == len(record["attempts"]) == tried == len(outcomes)
    assert record == job.record() and record["status"] == outcomes[-1].status


def test_a_failure_is_tried_again_by_the_next_sweep_and_a_success_never(tiny, tmp_path, executed):
    calls = executed(REFUSED, outcome(), outcome())
    for tried in (1, 2, 2):
        jobs = sweeping.plan(tiny, tmp_path / "s", [{"SEED": 1}])
        ends = sweep.execute(jobs, engines.local(1), lambda running: None)
        assert len(calls) == tried and ends == Counter({"failed" if tried == 1 else "ok": 1})


def test_two_sweeps_at_once_do_no_run_twice(tiny, tmp_path, executed, monkeypatch):
    """The one waits for the other, comes back to what is busy, and takes over what it finds, failures too."""
    calls = executed(outcome())
    monkeypatch.setattr(runs, "PATIENCE", 0.05)
    first, second = sweeping.plan(tiny, tmp_path / "s", [{"SEED": 1}, {"SEED": 2}])
    with ThreadPoolExecutor() as pool:
        with FileLock(first.folder.parent / f"{first.identity}.lock"):
            ends = pool.submit(sweep.execute, [first, second], engines.local(1), lambda running: None)
            wait_for(second.record)
            failed = second.record() | {"identity": first.identity, "status": "failed", "error": "by the other"}
            first.folder.mkdir(exist_ok=True)
            runs.artifacts.save_json(first.folder / "run.json", failed)
        assert ends.result() == Counter(ok=1, failed=1) and len(calls) == 1
    assert runs.run(replace(second, since=time.time() + 60)) == second.record() and len(calls) == 1


def test_runs_of_several_grids_and_of_older_code_stand_in_one_table(tiny, tmp_path, executed):
    executed(*[outcome()] * 4)
    for wanted in ([{"SEED": 1}, {"SEED": 2}], [{"SEED": 1, "RATE": 0.25}]):
        for job in sweeping.plan(tiny, tmp_path, wanted):
            runs.run(job)
    shown = table.frame(tmp_path / "01_tiny", tiny)
    assert sorted(zip(shown.SEED, shown.RATE, strict=True)) == [(1, 0.25), (1, 0.5), (2, 0.5)], "0.5 is the default"
    assert shown.current.all() and table.swept(shown, [{"SEED": 0, "RATE": 0, "METHOD": 0}]) == ["SEED", "RATE"]
    sweeping.write(tiny.parent, sweeping.WORK + "\n1 + 1")
    (new,) = sweeping.plan(tiny, tmp_path, [{"SEED": 1}])
    runs.run(new)
    shown = table.frame(tmp_path / "01_tiny", tiny)
    assert len(shown) == 4 and list(shown.run[shown.current.astype(bool)]) == [new.identity]


def test_a_run_whose_code_was_changed_since_it_was_planned_is_refused(tiny, tmp_path, executed):
    calls = executed()
    (job,) = sweeping.plan(tiny, tmp_path, [{"SEED": 1}])
    sweeping.write(tiny.parent, "1 + 1")
    record = runs.run(job)
    assert record["status"] == "failed" and "not those that the sweep began with" in record["error"] and not calls


def test_a_damaged_record_is_set_aside_and_its_run_made_anew(tiny, tmp_path, executed):
    executed(outcome(), outcome())
    (job,) = sweeping.plan(tiny, tmp_path, [{"SEED": 1}])
    first = runs.run(job)
    (job.folder / "run.json").write_text("{")
    assert table.records(job.folder.parent) == [] and "damaged" in sweep.listing([job])
    assert sweep.execute([job], engines.local(1), lambda running: None) == Counter(ok=1)
    assert job.record()["results"] == first["results"] and (job.folder / "run.damaged.json").read_text() == "{"


def test_a_record_of_another_run_is_none_of_this_one(tiny, tmp_path, executed):
    executed(outcome(), outcome())
    one, other = sweeping.plan(tiny, tmp_path, [{"SEED": 1}, {"SEED": 2}])
    runs.run(one)
    other.folder.mkdir()
    for text in ((one.folder / "run.json").read_text(), "{}", "[]"):
        (other.folder / "run.json").write_text(text)
        assert sweep.state(other) == "damaged"
        assert [record["identity"] for record in table.records(tmp_path / "01_tiny")] == [one.identity]
    assert sweep.execute([one, other], engines.local(1), lambda running: None) == Counter(ok=2)
    assert other.record()["parameters"]["SEED"] == 2


def test_a_run_gets_its_out_and_its_threads(tiny, tmp_path, executed):
    calls = executed(outcome())
    (job,) = sweeping.plan(tiny, tmp_path / "s", [{"SEED": 1, "RATE": 2}], threads=3)
    runs.run(job)
    assert calls[0][0] == {"SEED": 1, "RATE": 2, "OUT": str(job.folder / "out")}
    assert {calls[0][1][name] for name in runs.THREADS} == {"3"}
    assert calls[0][2] is None, "as long as its parameters are allowed"
    assert engines.share_of_cores(10_000) == 1 and engines.share_of_cores(1) == os.cpu_count()


def test_ctrl_c_ends_what_runs_begins_nothing_more_and_leaves_no_record(tiny, tmp_path, monkeypatch):
    def execute(notebook, out, parameters, timeout, env, stopped, mark):
        wait_for(stopped, seconds=20)
        ended.append(parameters["SEED"])
        raise notebooks.Stopped

    monkeypatch.setattr(notebooks, "execute", execute)
    jobs, ended = sweeping.plan(tiny, tmp_path / "s", [{"SEED": seed} for seed in range(9)]), []

    @contextmanager
    def interrupted():
        with engines.local(1) as machines:
            def submit(job):
                if job is jobs[3]:
                    wait_for(lambda: jobs[0].folder.exists())
                    raise KeyboardInterrupt
                return machines.submit(job)

            yield engines.Engine(submit, machines.workers, machines.stop)

    with pytest.raises(KeyboardInterrupt):
        sweep.execute(jobs, interrupted(), lambda running: None)
    assert ended == [0] and not any(job.record() for job in jobs)
