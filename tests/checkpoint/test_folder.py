"""The folder that a hook filled: nobody writes there any more, and what stands in its place is never followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trn.checkpoint.folder import Filled, discard, folder_problem, look_through, publish, seal, stage
from trn.checkpoint.retention import clean_leftovers
from trn.checkpoint.writers import open_for_writing
from trn.errors import TrainerError
from trn.files import foreign

needs_list_of_open_files = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files")


def filled(checkpoints: Path) -> Filled:
    folder = stage(checkpoints, 4)
    (folder / "deep").mkdir()
    (folder / "deep" / "größe.bin").write_bytes(b"x" * 1000)
    (folder / "note.txt").write_text("note")
    return Filled(folder, look_through(folder, "here"), None)


def test_what_is_sealed_and_published_is_what_its_list_says(tmp_path: Path) -> None:
    one = filled(tmp_path)
    files = seal(one)
    publish(one, tmp_path / "step-00000004.files")
    assert [file["path"] for file in files] == ["deep/größe.bin", "note.txt"]
    assert folder_problem(tmp_path / "step-00000004.files", files) is None
    assert os.listdir(tmp_path) == ["step-00000004.files"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("late", "step-00000004.files has 'late', which its meta does not list"),
        ("deep/late", "has 'deep/late', which its meta does not list"),
    ],
)
def test_a_file_that_comes_after_the_hook_returned_is_refused_before_anything_is_published(
    tmp_path: Path, name: str, says: str
) -> None:
    one = filled(tmp_path)
    (one.path / name).touch()
    with pytest.raises(TrainerError, match=f"changed after it returned: .*{says}") as error:
        seal(one)
    assert "\n" not in str(error.value)
    discard(one)
    assert os.listdir(tmp_path) == []


@needs_list_of_open_files
def test_a_file_that_is_left_open_for_writing_is_found_and_one_for_reading_is_not(tmp_path: Path) -> None:
    folder = stage(tmp_path, 4)
    with open(folder / "a", "w") as writing:
        assert open_for_writing(folder) == "a"
    with open(folder / "a"), open(tmp_path / "beside", "w"):
        assert open_for_writing(folder) is None
    assert writing.closed


def test_a_link_in_place_of_the_folder_is_removed_and_what_it_names_is_as_before(tmp_path: Path) -> None:
    other, checkpoints = tmp_path / "other", tmp_path / "checkpoints"
    (other / "deep").mkdir(parents=True)
    for folder in (other, other / "deep"):
        folder.chmod(0o755)
    checkpoints.mkdir()
    place = stage(checkpoints, 4)
    place.rmdir()
    place.symlink_to(other)
    with pytest.raises(TrainerError, match="removed output_dir"):
        look_through(place, "here")
    discard(place)
    assert os.listdir(checkpoints) == []
    assert {folder.stat().st_mode & 0o777 for folder in (other, other / "deep")} == {0o755}


def test_what_a_killed_hook_left_is_not_foreign_to_the_run_and_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = stage(tmp_path / "checkpoints", 4)
    (left / "link").symlink_to("/etc")
    os.mkfifo(left / "pipe")
    assert foreign(tmp_path) is None
    clean_leftovers(tmp_path / "checkpoints")
    assert os.listdir(tmp_path / "checkpoints") == []
    published = tmp_path / "checkpoints/step-00000004.files"
    published.mkdir()
    (published / "link").symlink_to("/etc")
    assert foreign(tmp_path) == "checkpoints/step-00000004.files/link is a symbolic link."
