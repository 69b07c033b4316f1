"""Files are written whole or not at all, read back to the bit, and refused by name when they are not what they were."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import artifacts
from helpers.artifacts import ArtifactError, atomic_write, check_file, load_json, save_json, verify_tree
from helpers.config import ROOT

REMEDY = "git checkout -- "


def refusal(call, *arguments):
    with pytest.raises(ArtifactError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------- atomic writes


def test_a_write_makes_its_folders_and_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "a long first text")
    atomic_write(path, b"short")
    assert path.read_bytes() == b"short" and names(tmp_path) == ["a/b.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    atomic_write(path, "old")

    def full(*_):
        raise OSError("no space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="no space"):
                atomic_write(path, "new")
        assert path.read_text() == "old" and names(tmp_path) == ["b.txt"]


KILLED = """
import os, signal
from pathlib import Path
from helpers import artifacts
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
artifacts.atomic_write(Path({path!r}), b"new" * 100000)
"""


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.json"
    atomic_write(path, "old")
    command = [sys.executable, "-c", KILLED.format(path=str(path))]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert not [p for p in tmp_path.glob("*.json") if p != path], "what was left is not taken for a file"
    atomic_write(path, "new")
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_written_gives_one_clear_line(tmp_path):
    """Root may write to read-only folders; below a file or in /proc nobody can."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "out", Path("/proc/sightline")):
        message = refusal(artifacts.ensure_writable, folder)
        assert message.startswith(f"cannot write to {folder} (") and message.endswith("choose another folder with OUT")
    artifacts.ensure_writable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir() and names(tmp_path / "new") == []


# ------------------------------------------------------------------------------------------------------ JSON


def test_json_comes_back_as_it_was_and_diffs_well(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"x": True, "z": "ü"}, "rows": [{"k": 1}, {"k": [[1], [2]]}], "e": {}, "d": []}
    save_json(tmp_path / "a.json", value)
    assert load_json(tmp_path / "a.json") == value
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert '  "b": [1, 2.5, null],' in lines, "a list of numbers keeps to one line"
    assert '    "x": true,' in lines, "an entry has a line of its own"
    assert [line[2:4] for line in lines if line.startswith('  "')] == ['"a', '"b', '"d', '"e', '"r'], "sorted"
    save_json(tmp_path / "b.json", dict(reversed(value.items())))
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_floats_keep_every_bit(tmp_path):
    values = [0.1 + 0.2, 1e-300, 1 / 3]
    save_json(tmp_path / "a.json", values)
    assert load_json(tmp_path / "a.json") == values


def test_a_number_that_json_does_not_have_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "a.json", {"score": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_damaged_json_is_refused_by_name_with_the_remedy(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = refusal(load_json, path)
    assert message.startswith(f"{path} is damaged (") and f"{REMEDY}{path}" in message and "delete it" in message
    assert refusal(load_json, tmp_path / "b.json") == f"{tmp_path / 'b.json'} is not there"


# --------------------------------------------------------------------------------------------------- tensors


def test_tensors_and_metadata_come_back_as_they_were(tmp_path):
    draws = torch.rand(2, 3, 4, 5)
    tensors = {
        "half": draws[0, 0].half(),
        "brain": torch.randn(2).bfloat16(),
        "whole": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "last": draws.to(memory_format=torch.channels_last),
        "part": torch.arange(10.0)[::2],
        "graph": torch.ones(2, requires_grad=True),
    }
    metadata = {"fit": "pinet/0", "list": [1, 2], "nested": {"x": None}}
    artifacts.save_tensors(tmp_path / "a.safetensors", tensors, metadata)
    loaded, facts = artifacts.load_tensors(tmp_path / "a.safetensors")
    assert facts == metadata and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in tensors.items())
    artifacts.save_tensors(tmp_path / "b.safetensors", tensors, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_without_our_metadata_can_be_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert artifacts.load_tensors(tmp_path / "a.safetensors")[1] == {}


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:5], lambda b: b"", lambda b: b"\xff" * 40 + b])
def test_damaged_tensors_are_refused_by_name_with_the_remedy(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"a": torch.ones(50)})
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(artifacts.load_tensors, path)
    assert message.startswith(f"{path} is damaged (") and f"{REMEDY}{path}" in message
    assert refusal(artifacts.load_tensors, tmp_path / "b") == f"{tmp_path / 'b'} is not there"


def test_half_precision_halves_kernels_and_keeps_the_rest():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = artifacts.half_precision(model.state_dict())
    assert {k: v.dtype for k, v in state.items()} == {
        "0.weight": torch.float16, "0.bias": torch.float32,
        "1.weight": torch.float32, "1.bias": torch.float32, "1.running_mean": torch.float32,
        "1.running_var": torch.float32, "1.num_batches_tracked": torch.int64}  # fmt: skip
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    artifacts.load_state(other, state)
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, model[0].weight.half().float()) and torch.equal(other[0].bias, model[0].bias)


def test_a_state_is_loaded_strictly():
    model = nn.Linear(2, 3)
    for state in ({"weight": torch.zeros(3, 2)}, model.state_dict() | {"more": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match="Missing key|Unexpected key"):
            artifacts.load_state(model, state)


# ------------------------------------------------------------------------------------------------- manifests


@pytest.fixture
def tree(tmp_path):
    """A tree that ships one study: weights and results, each with its manifest."""
    weights, results = tmp_path / "weights" / "toy", tmp_path / "results" / "toy"
    artifacts.save_tensors(weights / "pinet" / "0.safetensors", {"a": torch.zeros(8)})
    artifacts.save_tensors(weights / "pinet" / "1.safetensors", {"a": torch.ones(8)})
    artifacts.write_manifest(weights, {"data": "abc"})
    save_json(results / "fits" / "0.json", {"score": 0.5})
    made_from = artifacts.sha256(weights / artifacts.MANIFEST)
    artifacts.write_manifest(results, {"data": "abc", "weights": made_from})
    return tmp_path


def test_a_manifest_vouches_for_every_file_and_says_where_it_came_from(tree):
    manifest = artifacts.read_manifest(tree / "weights" / "toy")
    assert manifest["provenance"] == {"data": "abc"} and manifest["schema"] == 1
    assert sorted(manifest["files"]) == ["pinet/0.safetensors", "pinet/1.safetensors"]
    file = tree / "weights" / "toy" / "pinet" / "0.safetensors"
    assert manifest["files"]["pinet/0.safetensors"] == {
        "bytes": len(file.read_bytes()), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}  # fmt: skip
    assert check_file(file) == file
    assert artifacts.listed(tree / "weights" / "toy") == manifest["files"]
    assert artifacts.listed(tree / "weights" / "other") == {}
    assert verify_tree(tree) == ([], 3)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def swap(file):
    other = file.with_name("1.safetensors")
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second), other.write_bytes(first)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (truncate, "bytes where the manifest says"),
        (flip_a_bit, "does not have the sha256 of the manifest"),
        (swap, "does not have the sha256 of the manifest"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_file_that_was_changed_is_refused_by_name_with_the_remedy(tree, change, problem):
    file = tree / "weights" / "toy" / "pinet" / "0.safetensors"
    change(file)
    message = refusal(check_file, file)
    assert message.startswith(f"{file} ") and problem in message
    assert "git checkout -- weights results" in message and "RETRAIN=True" in message
    problems, count = verify_tree(tree)
    assert message in problems and count == 3
    assert len(problems) == (2 if change is swap else 1)


def test_an_edited_result_is_refused(tree):
    file = tree / "results" / "toy" / "fits" / "0.json"
    file.write_text(file.read_text().replace("0.5", "0.6"))
    assert str(file) in refusal(check_file, file)
    assert [str(file) in problem for problem in verify_tree(tree)[0]] == [True]


def test_a_file_that_the_manifest_does_not_name_is_refused(tree):
    file = tree / "weights" / "toy" / "pinet" / "2.safetensors"
    file.write_bytes(b"x")
    assert f"{file} is not named in the manifest" in refusal(check_file, file)
    assert [str(file) in problem for problem in verify_tree(tree)[0]] == [True]


def test_what_the_system_or_a_killed_write_left_is_no_problem(tree):
    (tree / "weights" / "toy" / ".DS_Store").touch()
    (tree / "results" / "toy" / "fits" / ".0.json.k2j3").touch()
    (tree / "results" / ".new-killed").mkdir()
    assert verify_tree(tree) == ([], 3)


def test_results_of_other_weights_are_found(tree):
    """As a publication leaves them that is killed between the two folders."""
    artifacts.write_manifest(tree / "weights" / "toy", {"data": "newer"})
    problems, _ = verify_tree(tree)
    assert len(problems) == 1 and f"{tree / 'results' / 'toy'} was made from other weights" in problems[0]


@pytest.mark.parametrize("content", [
    None, "{", "[]", '{"schema": 2}', '{"schema": 1, "files": {}}', '{"schema": 1, "files": [], "provenance": {}}',
    '{"schema": 1, "files": {"a": {}}, "provenance": {}}', '{"schema": 1, "files": {}, "provenance": []}',
])  # fmt: skip
def test_without_a_good_manifest_nothing_is_read(tree, content):
    manifest = tree / "weights" / "toy" / artifacts.MANIFEST
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    message = refusal(check_file, manifest.parent / "pinet" / "0.safetensors")
    assert artifacts.MANIFEST in message and ("restore" in message or "git checkout" in message)
    assert any(str(manifest) in problem for problem in verify_tree(tree)[0])


def test_a_manifest_that_changes_is_read_again(tree):
    file = tree / "weights" / "toy" / "pinet" / "0.safetensors"
    check_file(file)
    artifacts.save_tensors(file, {"a": torch.full((8,), 2.0)})
    refusal(check_file, file)
    artifacts.write_manifest(tree / "weights" / "toy", {})
    assert check_file(file) == file


def test_what_a_killed_replacement_set_aside_is_not_lost(tmp_path, monkeypatch):
    old, aside = tmp_path / "toy", tmp_path / ".toy.before"
    aside.mkdir()
    (aside / "file").write_text("old")
    (new := tmp_path / "new").mkdir()
    moves, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moves.append((Path(a).name, Path(b).name)), replace(a, b)))
    artifacts.replace_folder(new, old)
    assert moves[0] == (".toy.before", "toy") and old.is_dir() and not aside.exists()


def test_a_folder_is_replaced_whole(tmp_path):
    for generation in ("first", "second", "third"):
        atomic_write(tmp_path / "new" / f"{generation}.txt", generation)
        artifacts.replace_folder(tmp_path / "new", tmp_path / "shipped" / "toy")
        assert names(tmp_path) == [f"shipped/toy/{generation}.txt"]


def test_the_old_folder_is_kept_until_the_new_one_stands(tmp_path, monkeypatch):
    atomic_write(tmp_path / "old" / "a.txt", "old")
    atomic_write(tmp_path / "new" / "a.txt", "new")
    real, calls = os.replace, []

    def killed_before_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed_before_the_second)
        artifacts.replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == [".old.before/a.txt", "new/a.txt"], "nothing is lost"
    artifacts.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "a.txt").read_text() == "new" and names(tmp_path) == ["old/a.txt"]


# ------------------------------------------------------------------------------------------ the command line


def verify(root, monkeypatch, capsys):
    from helpers import __main__

    monkeypatch.setattr(__main__, "ROOT", root)
    code = __main__.main(["verify"])
    return code, capsys.readouterr().out


def test_verify_says_how_many_files_are_good(tree, monkeypatch, capsys):
    assert verify(tree, monkeypatch, capsys) == (0, "3 files verified\n")


def test_verify_misses_what_is_not_there(tree, monkeypatch, capsys):
    shutil.rmtree(tree / "results")
    code, text = verify(tree, monkeypatch, capsys)
    assert code == 1 and "toy has weights or results, and not both" in text
    shutil.rmtree(tree / "weights")
    code, text = verify(tree, monkeypatch, capsys)
    assert code == 1 and "there are no weights and results in" in text


def test_verify_names_every_file_that_is_not(tree, monkeypatch, capsys):
    flip_a_bit(tree / "weights" / "toy" / "pinet" / "0.safetensors")
    (tree / "results" / "toy" / "fits" / "0.json").unlink()
    code, text = verify(tree, monkeypatch, capsys)
    assert code == 1 and len(text.splitlines()) == 2
    assert "0.safetensors does not have" in text and "0.json is missing" in text


def test_what_this_repository_ships_is_good():
    problems, _ = verify_tree(ROOT)
    assert problems == []


def test_json_is_all_that_the_manifests_hold(tree):
    text = (tree / "weights" / "toy" / artifacts.MANIFEST).read_text()
    assert json.loads(text) == artifacts.read_manifest(tree / "weights" / "toy")
