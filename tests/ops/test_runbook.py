"""The runbook has a section for whatever may wake somebody, and its commands exist."""

import re
import shlex

import pytest
import typer.main

from ops.cli.main import app
from ops.explain.causes import CAUSES
from tests.ops.conftest import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^#+ (.+)\n([\s\S]*?)(?=^#+ |\Z)", RUNBOOK, re.MULTILINE))
COMMANDS = sorted(set(re.findall(r"`(els [^`]+)`", RUNBOOK)))
ALERTS = {head for head in SECTIONS if head.startswith("Els")}
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("code", CAUSES)
def test_a_cause_has_a_section_with_its_command(code):
    command = CAUSES[code].command.partition("  #")[0].replace("{batch}", "BATCH")

    assert f"`{command}`" in SECTIONS[code]
    assert "**Look:**" in SECTIONS[code]
    assert "**Do:**" in SECTIONS[code]


def test_there_is_no_section_of_a_cause_that_is_none():
    assert {head for head in SECTIONS if re.fullmatch("[a-z_]+", head)} == CAUSES.keys()


@pytest.mark.skipif(not DEPLOY.exists(), reason="no alerts are defined yet")
def test_the_alerts_are_those_of_deploy():
    defined = {
        name
        for path in DEPLOY.rglob("*.y*ml")
        for name in re.findall(r"^\s*-?\s*alert: (\w+)", path.read_text(), re.MULTILINE)
    }

    assert defined == ALERTS


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_a_section_of_an_alert_says_where_to_look_and_what_to_do(alert):
    look, do = SECTIONS[alert].index("**Look:**"), SECTIONS[alert].index("**Do:**")

    assert look < do


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_runbook_exists(command):
    _, *words = shlex.split(command.replace(" N", " 7").replace("DAYS", "30"))

    understood(typer.main.get_command(app), words)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("els explian BATCH", "explian"),
        ("els outbox list --nothing", "No such option"),
        ("els find", "Missing"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command, wrong):
    with pytest.raises(Exception, match=wrong):
        understood(typer.main.get_command(app), shlex.split(command)[1:])


def understood(command, words):
    """Parse the words as the command line does, without doing anything. Raises if it cannot."""
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words)


def test_every_link_of_the_runbook_leads_somewhere():
    anchors = {head.lower() for head in SECTIONS}

    links = re.findall(r"\]\(([^)]+)\)", RUNBOOK)

    assert links
    for link in links:
        page, _, anchor = link.partition("#")
        assert anchor in anchors if not page else (ROOT / "docs" / page).exists()
