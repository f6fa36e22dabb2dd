"""What `docker build` sees of this repository is enough for the image, and holds nothing else."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

import pytest

from tests.ops.manifests import ROOT

IGNORE = (ROOT / ".dockerignore").read_text().splitlines()
# Without this environment's .pth files, which lead to this repository.
RUN = "import sys; sys.path[:0] = sys.argv[1:]; sys.argv[1:] = ['--help']; import {0}; {0}.{1}"


def run(*command, cwd):
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked():
    return run("git", "ls-files", cwd=ROOT).splitlines()


def matches(pattern, path):
    """Tell whether a pattern of .dockerignore names a file or one of the folders around it."""
    regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    regex = regex.replace(r"\[co\]", "[co]")
    return any(re.fullmatch(regex, str(each)) for each in (path, *path.parents))


def context():
    """List the files that the build gets: the last pattern that names a file decides."""
    patterns = [line for line in IGNORE if line and not line.startswith("#")]
    for name in tracked():
        path = PurePosixPath(name)
        found = [each for each in patterns if matches(each.removeprefix("!"), path)]
        if found and found[-1].startswith("!"):
            yield name


def build(source, folder):
    """Build the wheel of a folder; return the names in it, unpacked beside it."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "installed")
        return {name for name in packed.namelist() if not name.endswith("RECORD")}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The wheel of the image: unpacked, and the names in it."""
    folder = tmp_path_factory.mktemp("image")
    for name in context():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "src" / name)
    names = build(folder / "src", folder / "wheels")
    return folder / "wheels" / "installed", names


def test_the_image_has_the_whole_wheel(image, tmp_path):
    _, names = image
    source = tmp_path / "all"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)

    assert names == build(source, tmp_path / "wheels")


@pytest.mark.parametrize(
    ("module", "call"),
    [("ops.__main__", "main()"), ("tasks.app", "app.finalize()"), ("ops.web.app", "create_app")],
)
def test_the_programs_need_only_what_the_image_has(image, module, call, tmp_path):
    installed, _ = image
    libraries = [path for path in sys.path if path.endswith("site-packages")]

    run(sys.executable, "-ISc", RUN.format(module, call), installed, *libraries, cwd=tmp_path)


def test_the_build_gets_only_what_the_wheel_is_made_of(image):
    _, names = image
    of_the_build = {"requirements.txt", "pyproject.toml", "README.md", "LICENSE"}
    moved = {"Procfile": "ops/stack/Procfile", "scripts/rabbitmq": "ops/rabbitmq"}
    left_out = {"durable_redis/pyproject.toml"}

    sent = {moved.get(name, name) for name in context()} - of_the_build - left_out
    assert sent - names == set()
