"""The kit is a distribution of its own: installed without the server, it sends, receives, tests."""

import re
import site
import subprocess
import sys
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import durable_redis
import els_client

SOURCE = Path(els_client.__file__).parents[1]
SERVER = ("core", "tasks", "ops", "migrations", "structlog", "psycopg")
USE = """
import sys
from importlib.metadata import version
from pathlib import Path

import els_client, els_client.inbox, els_client.sqlalchemy_inbox, els_client.fake, durable_redis

prefix = Path(sys.prefix).resolve()
for package in (els_client, durable_redis):
    assert Path(package.__file__).resolve().is_relative_to(prefix), package.__file__
assert (Path(els_client.__file__).parent / "py.typed").exists()
sender = els_client.Sender("redis://127.0.0.1:1/0", spool=prefix / "spool")
assert sender.cancel_batch("b", reason="r").spooled
sender.close()
loaded = set(SERVER) & sys.modules.keys()
assert not loaded, loaded
"""
TEST = """
def test_a_batch_is_ready(fake_els):
    fake_els.sender.register_batch("b", ["e"], course_code="c", user_id="u")
    fake_els.sender.assign_content(
        "b", text_storage_id="t", file_upload_id="f", original_file_name="x", file_size_bytes=1
    )
    assert fake_els.events[-1]["type"] == "BatchEssaysReady"
"""


def run(*command, cwd):
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source, folder):
    """Build a wheel without a registry; return its file."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    return max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


def test_a_wheel_has_the_kit_and_needs_nothing_of_the_server(tmp_path):
    wheel = build(SOURCE, tmp_path)

    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info" not in name}
        [metadata] = [name for name in packed.namelist() if name.endswith("METADATA")]
        about = message_from_string(packed.read(metadata).decode())
    files = [
        path for path in (SOURCE / "els_client").rglob("*") if path.suffix in {".py", ".typed"}
    ]
    files.append(SOURCE / "els_client" / "py.typed")
    assert names == {path.relative_to(SOURCE).as_posix() for path in files}
    needs = {
        re.match(r"[\w-]+", each)[0]
        for each in about.get_all("Requires-Dist")
        if "extra ==" not in each
    }
    assert needs == {"celery", "pydantic"}
    assert set(about.get_all("Provides-Extra")) == {"durable", "pytest", "sqlalchemy"}


@pytest.mark.slow
def test_it_is_used_without_the_server(tmp_path):
    wheels = [build(each, tmp_path) for each in (SOURCE, Path(durable_redis.__file__).parent)]
    home = tmp_path / "venv"
    venv.create(home)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index"]
    run(*pip, "--no-deps", *wheels, cwd=tmp_path)
    # What the wheels need, without the .pth files of this environment, which lead to the server.
    [folder] = home.glob("lib/python*/site-packages")
    (folder / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    (tmp_path / "test_with_the_fixture.py").write_text(TEST)

    run(python, "-I", "-c", f"SERVER = {SERVER}\n{USE}", cwd=tmp_path)
    for package in ("core", "tasks", "migrations"):
        with pytest.raises(AssertionError, match="ModuleNotFoundError"):
            run(python, "-I", "-c", f"import {package}", cwd=tmp_path)
    said = run(python, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)

    assert "1 passed" in said
