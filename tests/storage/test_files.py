"""Files appear whole or not at all, on this machine and behind a URI."""

import errno
import os

import fsspec
import pytest

from proav import storage
from proav.errors import UserError


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield "memory://bucket/run"
        fsspec.filesystem("memory").store.clear()


def test_write_read_list_delete(root):
    storage.write_text(storage.join(root, "a", "x.txt"), "one")
    storage.write_text(storage.join(root, "a", "b", "y.txt"), "two")
    storage.write_text(storage.join(root, "a", ".hidden"), "three")
    assert storage.read_text(storage.join(root, "a", "x.txt")) == "one"
    names = [path[len(root) :].strip("/") for path in storage.list_files(storage.join(root, "a"))]
    assert [name[name.index("a/") :] for name in names] == ["a/b/y.txt", "a/x.txt"]
    assert storage.exists(storage.join(root, "a", "x.txt")) and not storage.exists(
        storage.join(root, "absent")
    )
    assert storage.list_files(storage.join(root, "absent")) == []
    storage.delete_folder(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "x.txt"))


def test_a_listed_path_can_be_read(root):
    storage.write_bytes(storage.join(root, "x.bin"), b"abc")
    (path,) = storage.list_files(root)
    assert storage.read_bytes(path) == b"abc"


def test_lines_are_read_one_at_a_time_and_an_open_file_is_written_from_its_beginning(root, tmp_path):
    path = storage.join(root, "lines.txt")
    with open(tmp_path / "source", "w+b") as source:
        source.write("eins\nzw\u00f6lf\u2028\n\n".encode())  # a separator in a line ends no line
        storage.write_file(path, source)
    assert list(storage.read_lines(path)) == ["eins", "zw\u00f6lf\u2028", ""]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = str(tmp_path / "checkpoint")
    with storage.write_folder(target) as folder:
        open(os.path.join(folder, "w"), "w").write("old")
    with pytest.raises(RuntimeError), storage.write_folder(target) as folder:
        open(os.path.join(folder, "w"), "w").write("new")
        raise RuntimeError
    assert open(os.path.join(target, "w")).read() == "old"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    target = str(tmp_path / "checkpoint")
    with storage.write_folder(target) as folder:
        open(os.path.join(folder, "w"), "w").write("old")
    replace = os.replace

    def refuse(source, name):
        if "new" in os.listdir(source):
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, name)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), storage.write_folder(target) as folder:
        open(os.path.join(folder, "new"), "w").write("new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoint"] and os.listdir(target) == ["w"]
    with storage.write_folder(target) as folder:
        open(os.path.join(folder, "new"), "w").write("new")
    assert os.listdir(tmp_path) == ["checkpoint"] and os.listdir(target) == ["new"]


def test_what_killed_writers_left_is_removed_and_counted(tmp_path):
    storage.write_text(str(tmp_path / "whole.txt"), "x")
    (tmp_path / ".clips-000000000008.1a2b3c4d.tmp").mkdir()
    (tmp_path / ".clips-000000000008.1a2b3c4d.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".latest.1a2b3c4d.tmp").write_bytes(b"cl")
    assert storage.remove_leftovers(str(tmp_path)) == 2 and os.listdir(tmp_path) == ["whole.txt"]
    assert storage.remove_leftovers("memory://bucket") == 0


def test_a_kill_between_two_names_loses_no_folder(tmp_path, monkeypatch):
    """The older folder has its hidden name, and the new one not yet its final name."""
    target, replace = tmp_path / "clips-8", os.replace
    with storage.write_folder(str(target)) as folder:
        open(os.path.join(folder, "w"), "w").write("old")

    class Killed(BaseException):
        pass

    def replace_once(source, name):
        replace(source, name)
        monkeypatch.setattr(os, "replace", kill)

    def kill(source, name):
        raise Killed

    monkeypatch.setattr(os, "replace", replace_once)
    monkeypatch.setattr(storage.files.shutil, "rmtree", lambda *args, **options: None)
    with pytest.raises(Killed), storage.write_folder(str(target)) as folder:
        open(os.path.join(folder, "w"), "w").write("new")
    monkeypatch.undo()
    assert not target.exists() and len(os.listdir(tmp_path)) == 2
    assert storage.remove_leftovers(str(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["clips-8"] and (target / "w").read_text() == "old"
    (tmp_path / ".clips-8.1a2b3c4d.aside.tmp").mkdir()  # killed later, when the new one had its name
    assert storage.remove_leftovers(str(tmp_path)) == 1 and (target / "w").read_text() == "old"


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    done = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("flush") or flush(handle))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("name") or replace(*names))
    storage.write_text(str(tmp_path / "x.txt"), "x")
    assert done == ["flush", "name", "flush"]  # the file, then the folder that has its name
    done.clear()
    with storage.write_folder(str(tmp_path / "folder")) as folder:
        open(os.path.join(folder, "w"), "w").write("x")
    assert done == ["flush", "flush", "name", "flush"]


def test_a_remote_folder_comes_back_as_it_was():
    target = "memory://bucket/folder"
    with storage.write_folder(target) as folder:
        os.makedirs(os.path.join(folder, "inner"))
        open(os.path.join(folder, "inner", "w"), "w").write("x")
        open(os.path.join(folder, "done.json"), "w").write("{}")
    with storage.local_copy(target) as local:
        assert sorted(os.listdir(local)) == ["done.json", "inner"]
        assert open(os.path.join(local, "inner", "w")).read() == "x"
    with storage.write_folder(target) as folder:  # no file of the older folder stays
        open(os.path.join(folder, "done.json"), "w").write("[]")
    assert storage.list_files(target) == [f"{target}/done.json"]
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    # /dev/full refuses every write with ENOSPC; the temporary name is a link to it.
    monkeypatch.setattr(storage.files.uuid, "uuid4", lambda: type("Id", (), {"hex": "0" * 32})())
    os.symlink("/dev/full", tmp_path / ".x.bin.00000000.tmp")
    with pytest.raises(UserError, match="No space left.*free some space"):
        storage.write_bytes(str(tmp_path / "x.bin"), b"x" * 100_000)
    assert not (tmp_path / "x.bin").exists()


NAMES = (
    "my clip.mp4", "\u00fcber/\u97f3.mp4", "a#1.mp4", "50%25.mp4", "100%.mp4", "[x]/b.mp4", "what?.mp4",
    "watch?v=1.mp4", "a+b&c=d;e'f\"g.mp4",
)  # fmt: skip
"""Names that mean something else in an address."""


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_path_is_a_name_and_no_address(name):
    assert storage.open_filesystem(f"gs://anonymous@bucket/{name}")[1] == f"bucket/{name}"
    for options in ("region=eu-west-1", "region=eu-west-1&endpoint_override=localhost:9000&scheme=http"):
        filesystem, inner = storage.open_filesystem(f"s3://bucket/{name}?{options}")
        assert inner == f"bucket/{name}" and filesystem.handler.inner.region == "eu-west-1"
    storage.write_text(f"memory://bucket/{name}", name)
    (found,) = storage.list_files("memory://bucket")
    assert storage.read_text(found) == name
    fsspec.filesystem("memory").store.clear()


def test_what_pyarrow_says_of_an_address_is_told():
    with pytest.raises(
        UserError, match="cannot open gs://bucket/a.mp4.*Unexpected query parameter.*'colour'"
    ):
        storage.open_filesystem("gs://bucket/a.mp4?colour=red")
    with pytest.raises(UserError, match="cannot open s3://my bucket/a.mp4: Cannot parse URI"):
        storage.open_filesystem("s3://my bucket/a.mp4")


def test_an_unknown_scheme_is_reported():
    with pytest.raises(UserError, match="cannot open nosuch://x"):
        storage.open_filesystem("nosuch://x/y")
