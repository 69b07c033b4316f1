"""The bootstrap cell: nothing in a clone, this study's part of the repository elsewhere, or one line that helps."""

import ast
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement

from helpers import needs
from helpers.notebooks import execute, list_notebooks, read
from helpers.sweeps import identity

ROOT = Path(__file__).parents[1]
CELL = (ROOT / "helpers" / "bootstrap.py").read_text()
SHOW = "\nimport helpers; print(helpers.__file__)"
UNROUTABLE = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *command):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A repository with two studies and a helpers package that installs nothing."""
    remote = tmp_path_factory.mktemp("remote")
    files = {
        "requirements.txt": "",
        "helpers/__init__.py": "",
        "helpers/bootstrap.py": CELL,
        "helpers/needs.py": "install = lambda needs: print('needs', needs)",
        "data_configs/toyshapes.yaml": "a: 1",
        "weights/toyshapes/a.safetensors": "toyshapes",
        "weights/floods/b.safetensors": "floods",
        "results/toyshapes/a.csv": "1",
        "notebooks/01_toyshapes.ipynb": "{}",
    }
    for name, text in files.items():
        (remote / name).parent.mkdir(parents=True, exist_ok=True)
        (remote / name).write_text(text)
    git(remote, "init", "--quiet", "--initial-branch=main")
    git(remote, "config", "uploadpack.allowFilter", "true")
    git(remote, "add", ".")
    git(remote, "commit", "--quiet", "--message=first")
    git(remote, "tag", "v0.1.0")
    return f"file://{remote}"


def run(folder, text=CELL + SHOW, **env):
    """The cell as a script in ``folder``; `SIGHTLINE_URL` and the like are given by ``env``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIGHTLINE", "PYTHONPATH"))}
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=folder, env=inherited | env, capture_output=True, text=True)


def message(done):
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1].removeprefix("__main__.BootstrapError: ")


def test_inside_a_clone_it_only_finds_the_root():
    done = run(ROOT / "notebooks", SIGHTLINE_URL="file:///nowhere")
    assert done.stdout == f"{ROOT / 'helpers' / '__init__.py'}\n", done.stderr


def test_an_empty_folder_gets_this_studys_part_and_nothing_else(remote, tmp_path):
    done = run(tmp_path, SIGHTLINE_URL=remote)
    root = tmp_path / "sightline" / "toyshapes-v0.1.0"
    assert done.stdout.endswith(f"{root / 'helpers' / '__init__.py'}\n"), done.stderr
    assert "needs captum" in done.stdout
    assert (root / "weights/toyshapes/a.safetensors").read_text() == "toyshapes"
    assert {path.name for path in root.iterdir()} - {".git"} == {
        "requirements.txt",
        "helpers",
        "data_configs",
        "weights",
        "results",
    }
    assert not (root / "weights/floods").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sightline"]
    floods = git(root, "rev-parse", "HEAD:weights/floods/b.safetensors")
    assert floods not in git(root, "cat-file", "--batch-all-objects", "--batch-check")


def test_a_second_run_fetches_nothing(remote, tmp_path):
    first = run(tmp_path, SIGHTLINE_URL=remote)
    second = run(tmp_path, SIGHTLINE_URL="file:///gone", PATH="")
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_a_folder_that_another_notebook_has_fetched_meanwhile_serves(remote, tmp_path):
    """Both begin; the other one is done first."""
    rename = "            new.rename(root)"
    late = CELL.replace(rename, f"            __import__('shutil').copytree(new, root)\n{rename}")
    assert late != CELL
    done = run(tmp_path, late + SHOW, SIGHTLINE_URL=remote)
    assert done.stdout.endswith("helpers/__init__.py\n"), done.stderr


def test_a_folder_that_cannot_be_written_to_is_one_line(remote, tmp_path):
    broken = CELL.replace("root.parent.mkdir(exist_ok=True)", "raise PermissionError(13, 'Permission denied')")
    told = message(run(tmp_path, broken + SHOW, SIGHTLINE_URL=remote))
    assert told.endswith(f"{tmp_path} cannot be written to (Permission denied): start elsewhere")


def test_run_twice_in_one_kernel_the_path_is_entered_once(remote, tmp_path):
    done = run(tmp_path, CELL + CELL + "\nprint(sum('sightline' in p for p in sys.path))", SIGHTLINE_URL=remote)
    assert done.stdout.endswith("\n1\n"), done.stderr


def test_another_study_or_revision_has_a_folder_of_its_own(remote, tmp_path):
    floods = CELL.replace('"toyshapes"', '"floods"')
    run(tmp_path, SIGHTLINE_URL=remote)
    run(tmp_path, floods, SIGHTLINE_URL=remote, SIGHTLINE_REVISION="main")
    assert sorted(path.name for path in (tmp_path / "sightline").iterdir()) == ["floods-main", "toyshapes-v0.1.0"]
    assert (tmp_path / "sightline/floods-main/weights/floods/b.safetensors").exists()


def test_without_the_default_revision_the_default_branch_serves_and_it_is_said(remote, tmp_path):
    untagged, work = tmp_path / "untagged", tmp_path / "work"
    work.mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", "--no-tags", remote, untagged)
    git(untagged, "config", "uploadpack.allowFilter", "true")
    url = f"file://{untagged}"
    done = run(work, SIGHTLINE_URL=url)
    assert done.stdout.startswith(f"{url} has no v0.1.0, so its default branch is taken\n"), done.stderr
    assert (work / "sightline/toyshapes-v0.1.0/weights/toyshapes/a.safetensors").exists()
    again = run(work, SIGHTLINE_URL="file:///gone", PATH="")
    assert (again.returncode, "default branch" in again.stdout) == (0, False), "it is not fetched twice"
    refused = run(tmp_path, SIGHTLINE_URL=url, SIGHTLINE_REVISION="v0.1.0")
    assert message(refused).endswith("has no v0.1.0: set SIGHTLINE_REVISION to one of its tags or branches")


def test_the_working_trees_own_commit_serves_an_empty_folder(tmp_path):
    """The real thing, through a bare clone, since the cell fetches tags and branches only."""
    if subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--verify", "HEAD:helpers/needs.py"], capture_output=True
    ).returncode:
        pytest.skip("the repository has no commit with the helpers yet")
    bare, empty = tmp_path / "bare", tmp_path / "empty"
    empty.mkdir()
    git(ROOT, "clone", "--quiet", "--bare", ROOT, bare)
    git(bare, "tag", "test", git(ROOT, "rev-parse", "HEAD"))
    done = run(empty, SIGHTLINE_URL=f"file://{bare}", SIGHTLINE_REVISION="test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(empty / "sightline" / "toyshapes-test" / "helpers" / "__init__.py")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            {"SIGHTLINE_URL": "file:///no/where"},
            "no repository can be read at file:///no/where: set SIGHTLINE_URL to one",
        ),
        ({"SIGHTLINE_REVISION": "v9"}, "has no v9: set SIGHTLINE_REVISION to one of its tags or branches"),
        ({"PATH": "/no/where"}, "git is missing: install it, or work in a clone"),
        (
            {"SIGHTLINE_URL": "https://example.org/x"} | UNROUTABLE,
            "https://example.org/x is out of reach: turn the internet on, or work in a clone",
        ),
    ],
    ids=["wrong URL", "no such revision", "no git", "no network"],
)
def test_a_failure_is_one_line_that_says_what_to_do_and_leaves_nothing(remote, tmp_path, env, expected):
    done = run(tmp_path, **{"SIGHTLINE_URL": remote} | env)
    assert message(done).endswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_shows_that_one_line_and_papermill_fails(tmp_path):
    path = tmp_path / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(CELL), new_code_cell("print('never')")]), path)
    done = execute(path, tmp_path / "out.ipynb", timeout=60, env=os.environ | {"SIGHTLINE_URL": "file:///no/where"})
    assert (done.status, done.traceback) == (
        "failed",
        "Sightline: no repository can be read at file:///no/where: set SIGHTLINE_URL to one",
    )
    assert len(read(done.path).cells[-2].outputs) == 1


def test_an_interrupted_fetch_is_not_taken_for_a_complete_one(remote, tmp_path):
    """git is killed in the middle, and Python with it: what is left over is not used by the next run."""
    fake = tmp_path / "bin"
    fake.mkdir()
    real = shutil.which("git")
    (fake / "git").write_text(f'#!/bin/sh\ncase "$*" in *sparse-checkout*) kill -9 $PPID;; esac\nexec {real} "$@"\n')
    (fake / "git").chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    cut = run(folder, SIGHTLINE_URL=remote, PATH=f"{fake}{os.pathsep}{os.environ['PATH']}")
    assert cut.returncode == -9
    assert not (folder / "sightline").exists()
    assert run(folder, SIGHTLINE_URL=remote).returncode == 0
    assert (folder / "sightline/toyshapes-v0.1.0/weights/toyshapes/a.safetensors").exists()


def brought_along(*names):
    """The distributions ``names`` and what each of them requires, all in the spelling of `needs`."""
    found, left = set(), list(names)
    while left:
        if (name := needs._normal(left.pop())) not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                required = [Requirement(text) for text in requires(name) or ()]
                left += [r.name for r in required if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


class TestNeeds:
    """`helpers.needs.install`, which the cell calls once the helpers are there."""

    @pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
    def test_they_bring_what_the_notebook_and_its_helpers_import(self, path):
        """At the top of modules, that is: what only a function imports, is only needed by who calls it."""
        cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
        modules = [module.read_text() for module in identity.reached(cells) if module.suffix == ".py"]
        nodes = [node for source in [*modules, *cells[1:]] for node in ast.parse(source).body]
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        names = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"helpers"}
        sources = packages_distributions()
        stated = re.search('NEEDS = "[^"]+", "([^"]+)"', cells[0]).group(1).split()
        given = brought_along(*stated, *needs.ALWAYS, *needs.KEPT, "ipykernel")
        assert {name for name in names if not given & {needs._normal(source) for source in sources[name]}} == set()

    def test_nothing_is_installed_if_nothing_is_missing(self, monkeypatch):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
        assert needs.install("numpy Torch huggingface-hub pyyaml") == []

    def test_only_the_missing_ones_are_asked_for_and_torch_is_pinned(self, monkeypatch, tmp_path):
        asked = []

        def pip(command, **_):
            limits = [
                Path(limit).read_text() for option, limit in zip(command, command[1:], strict=False) if option == "-c"
            ]
            asked.append((command[-1], limits[0]))
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(subprocess, "run", pip)
        assert needs.install("numpy no-such-package") == ["no-such-package"]
        (package, kept), = asked  # fmt: skip
        assert package == "no-such-package"
        assert [line.split("==")[0] for line in kept.splitlines()] == ["torch", "torchvision", "numpy"]

    def test_a_failure_says_what_to_install_by_hand(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(needs.InstallError, match="install no-such-package by hand, keeping torch==.*pip says"):
            needs.install("no-such-package")
