import os
import re

import pytest

from mednorm.errors import RunError
from mednorm.files import make_folder, whole_folder, write_atomically


def test_text_is_written_as_utf_8_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_atomically(path, "Größe −1")
    assert path.read_bytes() == "Größe −1".encode()


def test_bytes_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "c.bin", b"\x00\xff\r\n")
    assert (tmp_path / "c.bin").read_bytes() == b"\x00\xff\r\n"


def test_an_older_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "c.txt"
    write_atomically(path, "a longer text than the next")
    write_atomically(path, "short")
    assert path.read_text() == "short"
    assert os.listdir(tmp_path) == ["c.txt"]


def test_a_reader_that_has_the_old_file_open_keeps_the_whole_of_it(tmp_path):
    path = tmp_path / "c.txt"
    write_atomically(path, "old " * 1000)
    with path.open() as reader:
        assert reader.read(4) == "old "
        write_atomically(path, "new")
        assert reader.read() == "old " * 999


def test_a_write_that_fails_leaves_the_old_file_and_no_part_of_the_new(tmp_path):
    path = tmp_path / "c.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["c.txt"]


def test_a_rename_that_fails_leaves_no_part_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "taken", "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(RunError, match=rf"{re.escape(str(path))}: expected a folder.*File exists"):
        make_folder(path)


def test_a_file_on_the_way_to_a_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"{re.escape(str(tmp_path / 'file' / 'out'))}: expected a folder"):
        write_atomically(tmp_path / "file" / "out" / "c.txt", "text")


def test_a_folder_is_there_once_all_of_it_is_written(tmp_path):
    target = tmp_path / "a" / "run"
    with whole_folder(target) as folder:
        write_atomically(folder / "one.txt", "1")
        write_atomically(folder / "in" / "two.txt", "2")
        assert not target.exists()
        assert folder.parent == target.parent
    assert sorted(path.name for path in target.rglob("*.txt")) == ["one.txt", "two.txt"]
    assert os.listdir(target.parent) == ["run"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_folder_that_was_not_written_to_its_end_is_not_there(tmp_path, error):
    def write():
        with whole_folder(tmp_path / "run") as folder:
            write_atomically(folder / "one.txt", "1")
            raise error

    with pytest.raises(type(error)):
        write()
    assert os.listdir(tmp_path) == []


def test_a_folder_never_takes_the_place_of_another(tmp_path):
    write_atomically(tmp_path / "run" / "old.txt", "old")
    with pytest.raises(OSError), whole_folder(tmp_path / "run") as folder:
        write_atomically(folder / "new.txt", "new")
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["old.txt"]


def test_what_a_killed_process_of_the_same_number_left_is_no_part_of_a_folder(tmp_path):
    write_atomically(tmp_path / f".run.{os.getpid()}.partial" / "left.txt", "half")
    with whole_folder(tmp_path / "run") as folder:
        write_atomically(folder / "one.txt", "1")
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["one.txt"]
