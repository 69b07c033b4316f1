"""Archives: what is good is unpacked whole, what is evil or broken leaves nothing behind."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.archives import ArchiveError, unpack

BYTES = bytes(range(256)) * 4096  # 1 MiB


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo | zipfile.ZipInfo) -> Path:
    """A zip or tar file (by its suffix) of ``(name, content)``, or of entries given as they are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for member in members:
                file.writestr(*(member if isinstance(member, tuple) else (member, b"/etc")))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
            for member in members:
                if isinstance(member, tuple):
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    file.addfile(info, io.BytesIO(member[1]))
                else:
                    file.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_an_archive_is_unpacked_with_its_folders(tmp_path, suffix):
    members = {"top/one.txt": b"1", "top/deep/two.bin": BYTES, "empty.txt": b""}
    folder = unpack(pack(tmp_path / f"a{suffix}", *members.items()), tmp_path / "new" / "folder")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in files} == members
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_run_had_unpacked_does_not_get_into_the_next(tmp_path):
    (tmp_path / "folder.d").mkdir()
    (tmp_path / "folder.d" / "half.txt").touch()
    folder = unpack(pack(tmp_path / "a.zip", ("one.txt", b"1")), tmp_path / "folder")
    assert [path.name for path in folder.iterdir()] == ["one.txt"]


def test_empty_folders_are_unpacked(tmp_path):
    tar = pack(tmp_path / "a.tar", special("tar folder", tarfile.DIRTYPE))
    zipped = pack(tmp_path / "a.zip", ("zip folder/", b""))
    assert (unpack(tar, tmp_path / "1") / "tar folder").is_dir()
    assert (unpack(zipped, tmp_path / "2") / "zip folder").is_dir()


def test_a_tar_file_that_ends_in_a_zip_file_is_unpacked_as_what_it_is(tmp_path):
    inner = pack(tmp_path / "inner.zip", ("wrong.txt", b"")).read_bytes()
    folder = unpack(pack(tmp_path / "a.tar", ("inner.zip", inner)), tmp_path / "folder")
    assert [path.name for path in folder.iterdir()] == ["inner.zip"]


@pytest.mark.parametrize(("suffix", "member", "reason"), [
    (".tar", ("../evil.txt", b"!"), "would lie outside"),
    (".tar", ("/evil.txt", b"!"), "would lie outside"),
    (".tar", ("a/../../evil.txt", b"!"), "would lie outside"),
    (".tgz", ("..\\evil.txt", b"!"), "would lie outside"),
    (".tar", special("link", tarfile.SYMTYPE, "/etc"), "is a link"),
    (".tar", special("link", tarfile.LNKTYPE, "../evil.txt"), "is a link"),
    (".tar", special("device", tarfile.CHRTYPE), "a device"),
    (".tar", special("pipe", tarfile.FIFOTYPE), "a device"),
    (".zip", ("../evil.txt", b"!"), "would lie outside"),
    (".zip", ("/evil.txt", b"!"), "would lie outside"),
    (".zip", ("C:evil.txt", b"!"), "would lie outside"),
    (".zip", zipped_link("link"), "is a link"),
    (".zip", ("bomb", bytes(2**20)), "more than 1,000 bytes"),
    (".tgz", ("bomb", bytes(2**20)), "more than 1,000 bytes"),
])  # fmt: skip
def test_an_evil_member_is_refused_and_nothing_of_the_archive_stays(tmp_path, suffix, member, reason):
    archive = pack(tmp_path / f"a{suffix}", ("good.txt", b"1"), member)
    with pytest.raises(ArchiveError, match=rf"a{suffix} cannot be unpacked: .*{reason}"):
        unpack(archive, tmp_path / "folder", max_bytes=1000)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_a_broken_archive_is_refused_and_nothing_of_it_stays(tmp_path, suffix):
    archive = pack(tmp_path / f"a{suffix}", ("one.bin", BYTES), ("two.bin", BYTES))
    whole = archive.read_bytes()
    for broken in (whole[: len(whole) // 2], b"<html>not an archive</html>", b""):
        archive.write_bytes(broken)
        with pytest.raises(ArchiveError, match=rf"a{suffix} cannot be unpacked"):
            unpack(archive, tmp_path / "folder")
        assert list(tmp_path.iterdir()) == [archive]


def test_a_folder_that_is_there_is_not_unpacked_into(tmp_path):
    archive = pack(tmp_path / "a.zip", ("one.txt", b"new"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_bytes(b"mine")
    with pytest.raises(ArchiveError, match="folder is there already: delete or move it"):
        unpack(archive, tmp_path / "folder")
    assert (tmp_path / "folder" / "one.txt").read_bytes() == b"mine"
