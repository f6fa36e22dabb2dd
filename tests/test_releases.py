"""Releases: what `releases.toml`, the CHANGELOG and `pyproject.toml` say, and `scripts/release`."""

import re
import subprocess
import tomllib

import pytest
from packaging.version import Version

from tests.releases import LAST, RELEASES, ROOT

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def git(*arguments, cwd=ROOT):
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_each_release_has_a_section_and_the_newest_stands_first():
    sections = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)

    assert sections == [(each["version"], each["date"].isoformat()) for each in RELEASES]
    assert CHANGELOG.index("## [Unreleased]") < CHANGELOG.index(f"## [{LAST['version']}]")
    assert sorted(RELEASES, key=lambda each: Version(each["version"]))[::-1] == RELEASES


def test_this_code_is_newer_than_the_last_release():
    assert Version(VERSION) > Version(LAST["version"])


@pytest.mark.parametrize("release", RELEASES, ids=lambda each: each["version"])
def test_a_migration_that_was_released_does_not_change(release):
    commit = release["commit"]
    if git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        pytest.skip(f"this clone lacks the commit of {release['version']}: git fetch --unshallow")

    listed = git("ls-tree", "-r", "--name-only", commit, "migrations/versions").split()
    revisions = sorted(re.search(r"/(\d+)_", name)[1] for name in listed)
    changed = [name for name in listed if git("diff", "--name-only", commit, "--", name)]

    assert revisions[-1] == release["schema"]
    assert changed == []


@pytest.mark.parametrize("release", RELEASES, ids=lambda each: each["version"])
def test_the_section_of_a_release_does_not_change(release):
    """What is new belongs under Unreleased."""
    before = git("show", f"{release['commit']}:CHANGELOG.md")
    if before is None:
        pytest.skip(f"this clone lacks the commit of {release['version']}: git fetch --unshallow")

    section = CHANGELOG.partition(f"## [{release['version']}] - ")[2].partition("\n## [")[0]
    added = [line for line in section.splitlines()[1:] if line not in before.splitlines()]

    assert added == []


@pytest.fixture
def clone(tmp_path):
    """A clone whose next commit is a release."""
    git("clone", "-q", str(ROOT), str(tmp_path / "clone"))
    clone = tmp_path / "clone"
    for name in ("scripts/release", "releases.toml", "CHANGELOG.md", "pyproject.toml"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    for name, value in (("user.name", "Somebody"), ("user.email", "somebody@school.example")):
        git("config", name, value, cwd=clone)
    edit(clone, "pyproject.toml", f'version = "{VERSION}"', 'version = "7.1.0"')
    section = "## [Unreleased]\n\n## [7.1.0] - 2030-01-01\n\n### Added\n\n- A change.\n\n"
    edit(clone, "CHANGELOG.md", "## [Unreleased]\n", section + "## [Older]\n")
    commit(clone)
    return clone


def edit(clone, name, old, new):
    text = (clone / name).read_text()
    assert old in text
    (clone / name).write_text(text.replace(old, new, 1))


def commit(clone):
    git("add", "-A", cwd=clone)
    git("commit", "-q", "--no-verify", "-m", "Release", cwd=clone)


def check(clone):
    return subprocess.run(
        ["sh", clone / "scripts/release", "--check"], capture_output=True, text=True, check=False
    )


def test_a_release_that_is_ready_is_told_so_and_not_tagged(clone):
    done = check(clone)

    assert (done.returncode, done.stderr) == (0, "")
    assert "7.1.0 can be released" in done.stdout
    assert git("tag", "-l", "v7.1.0", cwd=clone) == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("pyproject.toml", '"7.1.0"', '"7.1.0.dev0"', "has the version '7.1.0.dev0'"),
        ("pyproject.toml", '"7.1.0"', '"1.0.0"', "1.0.0 exists already"),
        ("CHANGELOG.md", " - 2030-01-01", "", "no section for 7.1.0"),
        ("CHANGELOG.md", "[7.1.0] - 2030", "[7.1.1] - 2030", "no section for 7.1.0"),
        ("CHANGELOG.md", "- A change.\n", "", "lists no change"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- More.\n", "under Unreleased"),
    ],
    ids=["a version under way", "an old one", "no date", "no section", "no change", "forgotten"],
)
def test_what_is_missing_for_a_release_is_named(clone, name, old, new, says):
    edit(clone, name, old, new)
    commit(clone)

    done = check(clone)

    assert done.returncode == 1
    assert says in done.stderr
    assert "Next: " in done.stderr


def test_an_unclean_tree_is_not_released(clone):
    (clone / "left.txt").touch()

    done = check(clone)

    assert (done.returncode, "not clean" in done.stderr) == (1, True)
