"""A bundle as one file for the way, `FILE.taillift`: whole, or as changes to a bundle on site.

The file is a tar archive. Its first member, `pack.json`, lists the bundle's files in order; every
file NAME that the receiver lacks follows as NAME.zst. If the receiver has a file to start from,
that file is zstd's prefix, as in `zstd --patch-from`: two graphs of the same backbone differ so
little that a hundredth of the bytes remains. Nothing in the file is believed: names, sizes and
hashes are checked before a bundle appears.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

import zstandard
from pydantic import Field, ValidationError

from taillift.models.bundle.atomic import (
    atomic_file,
    atomic_folder,
    file_sha256,
    require_writable,
)
from taillift.models.bundle.folder import (
    MANIFEST,
    MAX_MANIFEST,
    file_record,
    read_manifest,
    readable,
    verify_file,
    verify_files,
)
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.schema import Count, SchemaModel
from taillift.models.errors import UserError, first_lines
from taillift.models.release.signature import SIGNATURE

INDEX: Final = "pack.json"
SUFFIX: Final = ".zst"
CHUNK: Final = 2**20
LEVEL: Final = 9
# Smaller files are not worth a prefix.
LEAST_PATCHED: Final = 2**16
MAX_FILES: Final = 10_000
MAX_BYTES: Final = 2**36


class PackedFile(SchemaModel):
    """One file of the packed bundle, and where its bytes come from."""

    name: str
    sha256: str
    size: Count
    base: str | None = Field(
        None, description="file of the bundle on site that it equals or is a change of"
    )
    member: bool = Field(description="whether bytes follow; without them it equals its base")


class Pack(SchemaModel):
    """The content of `pack.json`."""

    format: int = Field(1, ge=1, le=1)
    name: str
    version: str
    since: str | None = Field(None, description="version of the bundle that must be on site")
    files: tuple[PackedFile, ...] = Field(max_length=MAX_FILES)


def pack(new: Path, out: Path, since: Path | None = None) -> Pack:
    """Write the bundle `new` to the file `out`, as changes to the bundle `since` if it is given.

    A packed bundle or empty file at `out` is replaced; the new one appears whole or not at all.
    Raises `UserError` if a bundle is damaged, or if `out` is another file or cannot be written.
    """
    require_writable(out)
    if out.exists() and out.stat().st_size and not is_packed(out):
        raise UserError(f"{out} exists already and is not a packed bundle: choose another name")
    manifest = read_manifest(new)
    verify_files(new, manifest)
    old = None if since is None else read_manifest(since)
    if old is not None and since is not None:
        verify_files(since, old)
    index = Pack(
        name=manifest.name,
        version=manifest.version,
        since=None if old is None else old.version,
        files=tuple(packed_files(new, manifest, old)),
    )
    with atomic_file(out) as temporary, tarfile.open(temporary, "w") as archive:
        add_member(archive, INDEX, index.model_dump_json(indent=2).encode())
        for file in index.files:
            if file.member:
                prefix = None if since is None or file.base is None else since / file.base
                content = compressed((new / file.name).read_bytes(), prefix)
                add_member(archive, file.name + SUFFIX, content)
    return index


def is_packed(path: Path) -> bool:
    """Return whether a file begins as `pack` writes it."""
    try:
        with path.open("rb") as file:
            return file.read(len(INDEX)) == INDEX.encode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def packed_files(new: Path, manifest: Manifest, old: Manifest | None) -> Iterator[PackedFile]:
    """Yield every file of a bundle: the manifest, a signature if it has one, what it lists."""
    known = {} if old is None else old.files
    by_hash = {record.sha256: name for name, record in known.items()}
    extra = [name for name in (MANIFEST, SIGNATURE) if (new / name).is_file()]
    for name in (*extra, *manifest.files):
        record = manifest.files.get(name) or file_record(new / name)
        same = by_hash.get(record.sha256)
        changed = name if name in known and record.size >= LEAST_PATCHED else None
        yield PackedFile(
            name=name,
            sha256=record.sha256,
            size=record.size,
            base=same or changed,
            member=same is None,
        )


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file that is the same whoever packs it, and when."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))


def compressed(content: bytes, base: Path | None) -> bytes:
    """Return content in zstd's format, with the file `base` as prefix if it is given.

    The tables are as large as the file: with the usual ones zstd finds hardly anything of a graph
    again (`docs/release.md` has the figures).
    """
    if base is None:
        return zstandard.ZstdCompressor(level=LEVEL).compress(content)
    prefix = base.read_bytes()
    bits = max(len(content), len(prefix)).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        window_log=min(bits + 1, zstandard.WINDOWLOG_MAX),
        hash_log=min(bits - 1, 28),
        chain_log=min(bits, 28),
    )
    compressor = zstandard.ZstdCompressor(
        dict_data=raw_dictionary(prefix), compression_params=parameters
    )
    return compressor.compress(content)


def raw_dictionary(prefix: bytes) -> zstandard.ZstdCompressionDict:
    """Return bytes as what zstd has seen before."""
    return zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def read_index(file: Path) -> Pack:
    """Return what a packed file says of itself; raises `UserError` if it is not one."""
    with open_archive(file) as archive:
        return next_index(file, archive)


def unpack(file: Path, target: Path, since: Path | None = None, replace: bool = False) -> Manifest:
    """Make the bundle of a packed file at `target`, from the bundle `since` if it needs one.

    Nothing appears at `target` before every file has the hash that the new manifest lists. An
    existing bundle is replaced only if `replace` is true. Raises `UserError` if the file is
    damaged or hostile, if it needs another bundle, or if there is not enough room.
    """
    with open_archive(file) as archive:
        index = next_index(file, archive)
        check_names(file, index)
        base = base_manifest(file, index, since)
        room = shutil.disk_usage(existing(target)).free
        needed = sum(entry.size for entry in index.files)
        if needed > min(room, MAX_BYTES):
            raise UserError(
                f"{file} would unpack to {needed:,} bytes, and {target.parent} has room for "
                f"{min(room, MAX_BYTES):,}: free some space, or do not trust the file"
            )
        with atomic_folder(target, MANIFEST if replace else None) as folder:
            for entry in index.files:
                path = folder / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                prefix = None
                if since is not None and base is not None and entry.base is not None:
                    verify_file(since, base, entry.base)
                    prefix = since / entry.base
                if entry.member:
                    content = next_member(file, archive, entry.name + SUFFIX)
                    decompress(file, entry, content, prefix, path)
                elif prefix is not None:
                    shutil.copyfile(prefix, path)
                if not path.is_file() or file_sha256(path).hexdigest() != entry.sha256:
                    raise UserError(f"{file}: {entry.name} has another hash: copy the file again")
            if (member := archive.next()) is not None:
                raise UserError(f"{file} holds {member.name!r} after its last file: refused")
            return check_unpacked(file, index, folder)


def existing(path: Path) -> Path:
    """Return the nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


@contextmanager
def open_archive(file: Path) -> Iterator[tarfile.TarFile]:
    """Yield the archive; raises `UserError` if it is none, or is damaged where the block reads."""
    try:
        # Only uncompressed: a compressed archive could grow without end while it is read.
        with readable(file.parent), tarfile.open(file, "r:") as archive:
            yield archive
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: name a file that `taillift pack` wrote") from None
    except UserError:
        raise
    except Exception as error:  # A damaged archive may raise anything.
        raise UserError(
            f"{file} is damaged or was not written by `taillift pack` ({first_lines(error)}): "
            "copy it again"
        ) from error


def next_member(file: Path, archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Return the content of the next member, which must be a plain file of this name.

    Raises `UserError` if it is another one, or a link.
    """
    member = archive.next()
    if member is None:
        raise UserError(f"{file} ends before {name}: copy it again")
    if member.name != name:
        raise UserError(f"{file} holds {member.name!r} in the place of {name!r}: refused")
    if not member.isreg() or member.issparse():
        raise UserError(f"{file}: {name!r} is not a plain file but a link or the like: refused")
    content = archive.extractfile(member)
    assert content is not None
    return content


def next_index(file: Path, archive: tarfile.TarFile) -> Pack:
    """Return the index that a packed file begins with; raises `UserError`."""
    text = next_member(file, archive, INDEX).read(MAX_MANIFEST + 1)
    if len(text) > MAX_MANIFEST:
        raise UserError(f"{file}: {INDEX} has more than {MAX_MANIFEST:,} bytes: refused")
    try:
        document = json.loads(text)
        if isinstance(document, dict) and document.get("format", 1) != 1:
            raise UserError(
                f"{file} is of format {document['format']}, and this taillift knows 1: update it"
            )
        return Pack.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: {INDEX} is not valid at {where} ({first['msg']})") from error


def check_names(file: Path, index: Pack) -> None:
    """Raise `UserError` if a name leads out of the bundle, or stands for two files.

    Names that differ only in case are one file on some systems.
    """
    taken: set[str] = set()
    for entry in index.files:
        path = PurePosixPath(entry.name)
        inside = not path.is_absolute() and ".." not in path.parts and path.parts
        if not inside or entry.name != str(path) or "\\" in entry.name or "\0" in entry.name:
            raise UserError(f"{file} lists {entry.name!r}, which leads out of the bundle: refused")
        if entry.name.lower() in taken:
            raise UserError(f"{file} lists {entry.name!r} twice: refused")
        taken.add(entry.name.lower())


def base_manifest(file: Path, index: Pack, since: Path | None) -> Manifest | None:
    """Return the manifest of the bundle that a packed file starts from; None if it needs none.

    Raises `UserError` if it is not given or another one, or lacks a file.
    """
    if index.since is None:
        if any(entry.base is not None or not entry.member for entry in index.files):
            raise UserError(f"{file} starts from a bundle that it does not name: refused")
        return None
    if since is None:
        raise UserError(
            f"{file} holds changes to the bundle {index.since}: pass its folder with --since"
        )
    manifest = read_manifest(since)
    if manifest.version != index.since:
        raise UserError(
            f"{file} holds changes to the bundle {index.since}, and {since} is "
            f"{manifest.version}: pass the folder of the former with --since"
        )
    for entry in index.files:
        if entry.base is not None and entry.base not in manifest.files:
            raise UserError(f"{file} starts from {entry.base!r}, which {since} lacks: refused")
        if entry.base is None and not entry.member:
            raise UserError(f"{file} has no bytes for {entry.name!r}: refused")
    return manifest


def decompress(
    file: Path, entry: PackedFile, content: IO[bytes], prefix: Path | None, path: Path
) -> None:
    """Write the content of a member to `path`; raises `UserError` if it is longer than listed."""
    dictionary = None if prefix is None else raw_dictionary(prefix.read_bytes())
    base_size = 0 if prefix is None else prefix.stat().st_size
    window = max(2**27, 2 ** (max(entry.size, base_size).bit_length() + 1))
    decompressor = zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=min(window, 2**zstandard.WINDOWLOG_MAX)
    )
    left = entry.size
    with decompressor.stream_reader(content) as source, path.open("wb") as target:
        while chunk := source.read(min(CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise UserError(
                    f"{file}: {entry.name} is longer than the {entry.size:,} bytes that are "
                    "listed: refused"
                )
            target.write(chunk)


def check_unpacked(file: Path, index: Pack, folder: Path) -> Manifest:
    """Return the manifest of an unpacked bundle.

    Raises `UserError` if it is not the bundle that the index names, or holds other files.
    """
    manifest = read_manifest(folder)
    if (manifest.name, manifest.version) != (index.name, index.version):
        raise UserError(
            f"{file} says that it holds {index.name} {index.version}, and it is {manifest.name} "
            f"{manifest.version}: refused"
        )
    listed = {MANIFEST, SIGNATURE, *manifest.files}
    for entry in index.files:
        if entry.name not in listed:
            raise UserError(
                f"{file} holds {entry.name!r}, which is not part of the bundle: refused"
            )
    verify_files(folder, manifest)
    return manifest
