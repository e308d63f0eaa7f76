"""The documents name nothing that does not exist: files, headings, commands, flags, variables."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.core import TyperGroup, TyperOption

from taillift.cli import commands
from taillift.service.settings import COMPOSE_VARIABLES, PREFIX, Settings
from taillift.training.data.cache import BUDGET

ROOT = Path(__file__).parents[1]
NOTES = ("models/default/README.md", "docker/config/README.md")
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *map(ROOT.joinpath, NOTES),
]
# It also names what is gone.
TODAY = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
ROOMS = ("models", "training", "service", "taillift", "tests", "docker", "benchmarks", "scripts")
# What the reader makes.
MADE = {"docker/k8s/overlays/shop", "docker/alertmanager/webhook-url"}
# Flags of other programs.
FOREIGN = {
    "--build",
    "--build-arg",
    "--data-binary",
    "--file",
    "--http2",
    "--no-index",
    "--find-links",
    "--nproc-per-node",
    "--nnodes",
    "--one-top-level",
    "--patch-from",
    "--rdzv-endpoint",
    "--standalone",
    "--tag",
    "--target",
}


def code(text: str) -> Iterator[str]:
    """Yield each line of indented code without its remark, and each piece of code in a sentence."""
    for line in text.splitlines():
        if line.startswith("    "):
            yield line.partition("  #")[0].strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def headings(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@cache
def flags() -> dict[str, set[str]]:
    """Return the flags of each command, by its words."""
    group = commands()
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        below = command.commands if isinstance(command, TyperGroup) else {"": command}
        for word, one in below.items():
            options = (option for option in one.params if isinstance(option, TyperOption))
            names = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
            found[f"{name} {word}".strip()] = names | {"--help"}
    return found


def uses(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the words of each use of the command `taillift`, and the flags in it."""
    for piece in code(text):
        for use in re.split(r"&&|\|(?! )|(?<!-m )\btaillift (?=taillift )", piece):
            _, found, arguments = use.partition("taillift ")
            words = arguments.split()
            if not found or not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
                continue
            given = [word.partition("=")[0] for word in words if word.startswith("--")]
            one, two = words[0], " ".join(words[:2])
            yield (two if two in flags() else one), given


@pytest.mark.parametrize("document", TODAY, ids=lambda path: path.name)
def test_every_command_and_flag_exists(document: Path) -> None:
    for command, given in uses(document.read_text("utf-8")):
        groups = {name.partition(" ")[0] for name in flags() if " " in name}
        assert command in flags() or command in groups, command
        assert set(given) <= flags().get(command, set()), (command, given)


@pytest.mark.parametrize("document", TODAY, ids=lambda path: path.name)
def test_every_flag_in_a_sentence_is_one_of_some_command(document: Path) -> None:
    scripts = [
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("tests/*/*.py"),
    ]
    literals = {
        flag
        for path in scripts
        if path.is_file()
        for flag in re.findall(r"--[a-z][a-z0-9-]*", path.read_text("utf-8"))
    }
    known = {flag for names in flags().values() for flag in names} | literals | FOREIGN
    named = re.findall(r"`(--[a-z][a-z0-9-]*)", document.read_text("utf-8"))
    assert set(named) <= known


@pytest.mark.parametrize(
    "document", [*TODAY, ROOT / "docker/k8s/base/settings.env"], ids=lambda path: path.name
)
def test_every_variable_is_a_setting(document: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | COMPOSE_VARIABLES
    known |= {BUDGET, f"{PREFIX}KEY"}  # The latter is misspelt, as an example.
    assert set(re.findall(r"\bTAILLIFT_[A-Z_]+[A-Z]", document.read_text("utf-8"))) <= known


@pytest.mark.parametrize("document", TODAY, ids=lambda path: path.name)
def test_every_metric_is_in_the_code(document: Path) -> None:
    source = "".join(path.read_text("utf-8") for path in ROOT.glob("service/**/*.py"))
    for name in re.findall(r"\btaillift_[a-z_]+[a-z]", document.read_text("utf-8")):
        own = name.removeprefix("taillift_")
        stem = re.sub(r"_(total|info|bucket|sum|count)$", "", own)
        assert re.search(rf'"(taillift_)?({own}|{stem})"', source), name


@pytest.mark.parametrize("document", TODAY, ids=lambda path: path.name)
def test_every_file_and_script_exists(document: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }
    for piece in code(document.read_text("utf-8")):
        for name in re.findall(r"(?<![\w/.-])(?:[\w-]+/)*\w+\.py\b", piece):
            assert any(f"/{path}".endswith(f"/{name}") for path in files), name
        for name in re.findall(
            r"(?<![\w/.-])(?:scripts|docker|\.ci|tests|docs)/[\w./-]*[\w]", piece
        ):
            assert (ROOT / name).exists() or name in MADE, name
        for name in re.findall(r"python -m benchmarks\.(\w+)", piece):
            assert (ROOT / "benchmarks" / name).exists() or f"benchmarks/{name}.py" in files, name
