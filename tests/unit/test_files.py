import os
import re

import pytest

from mednorm.errors import RunError
from mednorm.files import make_folder, write_atomically


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
