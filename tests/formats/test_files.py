"""Writing whole files or nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eplb.errors import InputError
from eplb.formats.files import check_output, write_bytes


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """With the mode any new file has, and nothing left beside it."""
    path = tmp_path / "plan.json"
    write_bytes(str(path), b"new")
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    """Nothing of the user's is overwritten unasked."""
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="exists; --force overwrites it"):
        write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    write_bytes(str(path), b"new", force=True)
    assert path.read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file it points to is what is rewritten."""
    (tmp_path / "real.json").write_bytes(b"old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_bytes(str(tmp_path / "link.json"), b"new", force=True)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_bytes() == b"new"


def test_impossible_places_are_named(tmp_path: Path) -> None:
    """A folder, a missing folder and a file as a folder."""
    with pytest.raises(InputError, match="is a folder; the name of a file"):
        check_output(str(tmp_path), force=True)
    with pytest.raises(InputError, match="none is not a folder that exists"):
        check_output(str(tmp_path / "none" / "plan.json"), force=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file is not a folder that exists"):
        check_output(str(tmp_path / "file" / "plan.json"), force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    """Found out before any work is done."""
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission to write"):
        check_output(str(tmp_path / "plan.json"), force=False)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """The process may write 10 bytes a file: the new one does not fit and the old one stays."""
    path = tmp_path / "plan.json"
    path.write_bytes(b"the old plan")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from eplb.formats.files import write_bytes\n"
        "from eplb.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n"
        "    write_bytes(sys.argv[1], b'x' * 1000, force=True)\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert (
        "could not be written: File too large; the file that was there is unchanged" in done.stdout
    )
    assert path.read_bytes() == b"the old plan"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_written(tmp_path: Path) -> None:
    """A rename would replace a device or pipe; - is no name."""
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        with pytest.raises(InputError, match="is a device or pipe"):
            write_bytes(path, b"new", force=True)
    with pytest.raises(InputError, match="- is standard output"):
        check_output("-", force=False)
