import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taillift.models.bundle.folder import MODEL
from taillift.models.errors import UserError
from taillift.models.versions_cli import app
from tests.support.palette import write_bundle

runner = CliRunner()


def run(*words: object) -> str:
    """Run a command that must succeed, and return what it prints."""
    result = runner.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_versions_are_added_promoted_compared_and_rolled_back(tmp_path: Path, bundle: Path) -> None:
    store, second = tmp_path / "store", write_bundle(tmp_path / "second", name="second")
    assert run("add", store, bundle) == "1\n"
    assert run("add", store, second, "--note", "a try") == "2\n"
    assert run("promote", store, 1) == "champion 1, challenger none, previous none\n"
    assert "challenger 2" in run("challenge", store, 2, "--share", "0.5", "--few", "1")
    assert "challenger none" in run("unchallenge", store)
    assert run("promote", store, 2, "--because", "better") == (
        "champion 2, challenger none, previous 1\n"
    )
    assert "champion 1," in run("rollback", store)
    listed = json.loads(run("list", store, "--json"))
    assert [(row["number"], row["role"], row["name"]) for row in listed["versions"]] == [
        (1, "champion", "palette"),
        (2, "previous", "second"),
    ]
    shown = json.loads(run("show", store, 2, "--json"))
    assert [line["action"] for line in shown["log"]] == [
        "add",
        "challenge",
        "unchallenge",
        "promote",
        "rollback",
    ]
    assert "2: second" in run("verify", store, 2)
    assert "previous" in run("list", store)
    assert "promote by" in run("show", store, 2)


def test_a_damaged_version_is_told_and_not_promoted(tmp_path: Path, bundle: Path) -> None:
    store = tmp_path / "store"
    run("add", store, bundle)
    run("promote", store, 1)
    run("add", store, write_bundle(tmp_path / "second", name="second"))
    graph = store / "versions" / "2" / MODEL
    graph.unlink()
    graph.write_bytes(b"damaged")
    result = runner.invoke(app, ["verify", str(store)])
    assert result.exit_code == 1
    assert "1: palette" in result.stdout
    assert "2: " in result.stderr
    with pytest.raises(UserError, match="its hash differs"):
        run("promote", store, 2)
    (store / "versions" / "2" / "manifest.json").write_text("{}")
    listed = json.loads(run("list", store, "--json"))
    assert "is not valid" in listed["versions"][1]["problem"]
    assert listed["versions"][0]["role"] == "champion"
