"""The commands `compare-bundles`, `pack`, `unpack`, `sign` and `verify-signature`."""

# Imports here slow down every `taillift --help`: the commands import the heavy modules themselves.
from pathlib import Path
from typing import Annotated, Literal

import typer

from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError
from taillift.models.terminal import printable_json, say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare_bundles(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="OLD NEW PHOTOS",
            help="The bundle that is served, the one that may replace it, and labelled photos that "
            "neither has seen: a folder with a folder for each class, a folder with test/ or val/, "
            "or a CSV file with the columns path and label. With --variants: BUNDLE PHOTOS.",
        ),
    ],
    variants: Annotated[
        bool,
        typer.Option("--variants", help="Compare the int8 and fp16 graphs of one bundle to fp32."),
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which graph of both bundles to run.")
    ] = "fp32",
    ensemble: Annotated[
        Literal["full", "off", "adaptive"] | None,
        typer.Option(
            help="Views that count, as for `classify`.",
            show_default="what each bundle uses unless a request names one",
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Number of pixels beyond which an image is refused.")
    ] = MAX_PIXELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Say group by group whether a new bundle is better, on the same photos.

    The exit status is 1 if the few-shot classes got worse beyond noise.
    """
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.schema import Precision
    from taillift.models.release import bundle_comparison
    from taillift.models.release.comparison_text import print_comparison

    if len(paths) != (2 if variants else 3):
        raise UserError(
            "--variants needs BUNDLE PHOTOS" if variants else "compare-bundles needs OLD NEW PHOTOS"
        )
    chosen = Ensemble(ensemble) if ensemble else None
    if variants:
        bundle, photos = paths
        by_precision = bundle_comparison.compare_variants(bundle, photos, chosen, max_pixels)
        comparisons = list(by_precision.values())
        document = {str(name): one.model_dump(mode="json") for name, one in by_precision.items()}
    else:
        old, new, photos = paths
        comparisons = [
            bundle_comparison.compare_bundles(
                old, new, photos, Precision(precision), chosen, max_pixels
            )
        ]
        document = comparisons[0].model_dump(mode="json")
    if as_json:
        import json

        print(printable_json(json.dumps(document, indent=2, ensure_ascii=False)))
    else:
        for comparison in comparisons:
            print_comparison(comparison)
    if any(comparison.verdict == "harm" for comparison in comparisons):
        raise typer.Exit(1)


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle to pack.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.taillift", help="File to write.")
    ],
    since: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="Bundle that the receiver has. Only what differs from it is packed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Pack a bundle into one file, whole or as changes to a bundle that the receiver has."""
    from taillift.models.release import archive

    index = archive.pack(bundle, out, since)
    whole = sum(file.size for file in index.files)
    base = "" if index.since is None else f", as changes to {index.since}"
    say(
        f"{out}: bundle {index.name} {index.version}{base}, {out.stat().st_size:,} bytes for "
        f"{whole:,}"
    )


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="File that `taillift pack` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle to make.")],
    since: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="Bundle that the file holds changes to.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing bundle.")] = False,
) -> None:
    """Make a bundle from a packed file; it appears only if every hash is right."""
    from taillift.models.release import archive

    manifest = archive.unpack(file, out, since, replace)
    say(f"{out}: bundle {manifest.name} {manifest.version}")


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path, typer.Option(help="Private elliptic-curve key in PEM.")],
) -> None:
    """Sign a bundle with a key of your own; the signature lies in its folder."""
    from taillift.models.release import signature

    say(f"{signature.sign(bundle, key)}: written")


@app.command()
def verify_signature(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[
        list[Path],
        typer.Option(help="Public key in PEM. May be given several times: one must fit."),
    ],
) -> None:
    """Check that a bundle is as the owner of a key signed it."""
    from taillift.models.release import signature

    signature.verify_signature(bundle, *key)
    say(f"{bundle}: signed, and unchanged since")
