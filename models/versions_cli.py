"""The commands `taillift models ...`: a store of bundles, and which of them is served.

A service that runs with `--store` follows every change within two seconds.
"""

# Imports here slow down every `taillift --help`: the commands import the heavy modules themselves.
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from taillift.models.errors import UserError
from taillift.models.terminal import printable_json, say

if TYPE_CHECKING:
    from taillift.models.bundle.version_store import Roles, StoredVersion

app = typer.Typer(no_args_is_help=True)

# Of the commands that run a model: a service on the same machine comes first.
LEAST_PRIORITY: Final = 19
# The folder of a store with the public keys of those whose bundles it takes.
KEYS: Final = "keys"

Folder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
Number = Annotated[int, typer.Argument(metavar="N", min=1, help="Number of the version.")]
Because = Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the log.")]
ClassesChange = Annotated[
    bool,
    typer.Option(
        "--classes-change", help="Allow classes that are not the champion's; the log names them."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def add(
    store: Folder,
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    classes_change: ClassesChange = False,
    note: Annotated[str, typer.Option(metavar="TEXT", help="A remark, for the log.")] = "",
    require_signature: Annotated[
        bool,
        typer.Option(
            "--require-signature",
            help="Refuse a bundle that none of the keys STORE/keys/*.pub has signed.",
        ),
    ] = False,
) -> None:
    """Copy a bundle into the store, check it there, and print its number.

    The store is made if it does not exist. What is served does not change. If the store has keys,
    a signature is always required.
    """
    from taillift.models.bundle.version_store import VersionStore

    os.nice(LEAST_PRIORITY)
    opened, keys = VersionStore.at(store), sorted((store / KEYS).glob("*.pub"))
    if require_signature and not keys:
        raise UserError(
            f"{store / KEYS} has no public key: copy there, as NAME.pub, the keys of those whose "
            "bundles you trust"
        )
    if keys:
        from taillift.models.release.signature import verify_signature

        verify_signature(bundle, *keys)
    print(opened.add(bundle, classes_change, note))


@app.command("list")
def list_versions(store: Folder, as_json: AsJson = False) -> None:
    """List the versions with their roles."""
    from rich.table import Table

    from taillift.models.bundle.version_store import VersionStore
    from taillift.models.terminal import PlainConsole

    opened = VersionStore(store)
    roles, rows = opened.roles(), []
    for number in opened.numbers:
        try:
            rows.append(summary(opened.version(number), roles))
        except UserError as error:
            rows.append({"number": number, "role": roles.role_of(number), "problem": str(error)})
    if as_json:
        document = {"etag": roles.etag, "versions": rows}
        print(printable_json(json.dumps(document, indent=2)))
        return
    table = Table("version", "role", "bundle", "added", "classes", "accuracy", "few-shot")
    for row in rows:
        if problem := row.get("problem"):
            table.add_row(str(row["number"]), str(row["role"] or ""), str(problem))
            continue
        table.add_row(
            str(row["number"]),
            str(row["role"] or ""),
            f"{row['name']} {row['bundle']}",
            str(row["added"])[:10],
            str(row["classes"]),
            *("" if row[name] is None else f"{row[name]:.1f} %" for name in ("mean_class", "few")),
        )
    PlainConsole().print(table)


@app.command()
def show(store: Folder, number: Number, as_json: AsJson = False) -> None:
    """Show a version, and what happened to it."""
    from taillift.models.bundle.version_store import VersionStore

    opened = VersionStore(store)
    stored = opened.version(number)
    row = summary(stored, opened.roles())
    lines = [
        line.model_dump(mode="json", exclude_none=True)
        for line in opened.log()
        if number in {line.version, line.previous}
    ]
    document = {
        **row,
        "classes_change": stored.added.classes_change,
        "new_classes": list(stored.added.new_classes),
        "lost_classes": list(stored.added.lost_classes),
        "files": {name: file.sha256 for name, file in stored.manifest.files.items()},
        "log": lines,
    }
    if as_json:
        print(printable_json(json.dumps(document, indent=2)))
        return
    for name, value in document.items():
        match value:
            case dict():
                say(f"{name}:")
                for key, text in value.items():
                    say(f"  {text}  {key}")
            case list() if name == "log":
                say("log:")
                for line in lines:
                    because = f": {line['because']}" if line.get("because") else ""
                    say(f"  {line['time'][:19]} {line['action']} by {line['who']}{because}")
            case list():
                say(f"{name}: {', '.join(map(str, value)) or 'none'}")
            case _:
                say(f"{name}: {'none' if value is None else value}")


@app.command()
def verify(
    store: Folder,
    number: Annotated[
        int | None,
        typer.Argument(metavar="[N]", min=1, help="Number of the version.", show_default="all"),
    ] = None,
) -> None:
    """Check every hash, and that the graphs compute what they must here.

    The exit status is 1 if a version is damaged.
    """
    from taillift.models.bundle.version_store import VersionStore, check_bundle

    os.nice(LEAST_PRIORITY)
    opened = VersionStore(store)
    damaged = False
    for one in opened.numbers if number is None else [number]:
        try:
            manifest = check_bundle(opened.path(one))
        except UserError as error:
            say(f"{one}: {error}", err=True)
            damaged = True
        else:
            say(f"{one}: {manifest.name} {manifest.version} is sound")
    if damaged:
        raise typer.Exit(1)


@app.command()
def remove(store: Folder, number: Number) -> None:
    """Delete a version that has no role. Its number is not used again."""
    from taillift.models.bundle.version_store import VersionStore

    VersionStore(store).remove(number)
    say(f"version {number} is removed")


@app.command()
def promote(
    store: Folder, number: Number, because: Because = "", classes_change: ClassesChange = False
) -> None:
    """Check a version and make it champion: the one that answers."""
    from taillift.models.bundle.version_store import VersionStore, check_bundle

    os.nice(LEAST_PRIORITY)
    opened = VersionStore(store)
    check_bundle(opened.path(number))
    tell(opened.promote(number, because, classes_change=classes_change))


@app.command()
def rollback(store: Folder, because: Because = "") -> None:
    """Make the previous champion champion again."""
    from taillift.models.bundle.version_store import VersionStore, check_bundle

    os.nice(LEAST_PRIORITY)
    opened = VersionStore(store)
    check_bundle(opened.path(opened.rollback_target(opened.roles())))
    tell(opened.rollback(because))


@app.command()
def challenge(
    store: Folder,
    number: Number,
    share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the images whose copies the challenger answers as well.",
            show_default="0.05",
        ),
    ] = None,
    few: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The same for images whose first or second class, to the champion, is few-shot.",
            show_default="1",
        ),
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Instead of copies: the share of clients that the challenger answers.",
            show_default=False,
        ),
    ] = None,
    because: Because = "",
) -> None:
    """Check a version and let it be compared with the champion."""
    from taillift.models.bundle.version_store import (
        Canary,
        Challenger,
        Shadow,
        VersionStore,
        check_bundle,
    )

    if canary is not None and (share is not None or few is not None):
        raise UserError("--canary answers clients, --share and --few copies: give one or the other")
    if canary == 0:
        raise UserError("--canary 0 would answer nobody: leave it out, or use unchallenge")
    if canary is not None:
        challenger = Challenger(version=number, canary=Canary(share=canary))
    else:
        shadow = Shadow(
            share=0.05 if share is None else share,
            few=1.0 if few is None else few,
        )
        challenger = Challenger(version=number, shadow=shadow)
    os.nice(LEAST_PRIORITY)
    opened = VersionStore(store)
    check_bundle(opened.path(number))
    tell(opened.challenge(challenger, because))


@app.command()
def unchallenge(store: Folder, because: Because = "") -> None:
    """End the comparison with the challenger."""
    from taillift.models.bundle.version_store import VersionStore

    tell(VersionStore(store).unchallenge(because))


@app.command()
def verdict(
    store: Folder,
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv",
            help="Labelled photos with the columns label,champion,challenger: the true class and "
            "the two answers.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say whether the challenger is better, by the labels of photos on which the two differ.

    It may be asked after every label: equal models are promoted in at most 5 % of cases, however
    often one looks. The exit status is 0 in any case.
    """
    from dataclasses import asdict

    from taillift.models.bundle.version_store import RefusedError, VersionStore
    from taillift.models.duel import read_duel

    opened = VersionStore(store)
    if (champion := opened.roles().champion) is None:
        raise RefusedError(f"{store} has no champion")
    classes = opened.version(champion).manifest.classes
    duel = read_duel(labels, [info.label for info in classes], [info.group for info in classes])
    if as_json:
        document = asdict(duel)
        for tally in (document["overall"], *document["groups"].values()):
            del tally["stakes"]  # All are 1.
        print(json.dumps(document, indent=2))
        return
    for name, tally in (("all", duel.overall), *duel.groups.items()):
        say(f"{name}: the challenger alone right {tally.wins}, the champion alone {tally.losses}")
    say(f"{duel.decision}: {duel.reason} ({duel.labels} labels)")


def summary(stored: "StoredVersion", roles: "Roles") -> dict[str, object]:
    """Return what a list says of a version; accuracies are in per cent, of all five views."""
    from taillift.models.bundle.schema import Precision

    manifest = stored.manifest
    evaluation = manifest.variants[Precision.FP32].evaluation
    return {
        "number": stored.number,
        "role": roles.role_of(stored.number),
        "name": manifest.name,
        "bundle": manifest.version,
        "added": stored.added.change.time.isoformat(),
        "by": stored.added.change.who,
        "classes": len(manifest.classes),
        "mean_class": evaluation.full.mean_class if evaluation else None,
        "few": evaluation.full.few if evaluation else None,
        "note": stored.added.change.because,
    }


def tell(roles: "Roles") -> None:
    """Print the roles in one line."""
    challenger = roles.challenger.version if roles.challenger else None
    names = {"champion": roles.champion, "challenger": challenger, "previous": roles.previous}
    say(", ".join(f"{role} {number or 'none'}" for role, number in names.items()))
