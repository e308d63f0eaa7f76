"""The other servers: how each is installed, started and asked."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.k6 import Target, body_of
from benchmarks.peers.model import BATCH, BUNDLE, THREADS
from benchmarks.served import ROOT, ask, served
from taillift.models.bundle.images import VIEWS
from taillift.models.errors import UserError
from taillift.service.settings import Settings

VERSIONS: Final = Path(__file__).with_name("versions.txt")
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "taillift/peers"


@dataclass(frozen=True)
class Server:
    """`command` follows its environment's Python, with "{port}" for the port.

    It takes an image as the body of POST `path`, or as the field `form` of a form.
    """

    package: str
    command: str
    path: str
    form: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pin(self) -> str:
        (pin,) = (pin for pin in _pins() if _package(pin) == self.package)
        return pin


SERVERS: Final = {
    "LitServe": Server(
        "litserve",
        "-m benchmarks.peers.litserve_server {port}",
        "/predict",
        form="image",
    ),
    "mosec": Server(
        "mosec",
        "-m benchmarks.peers.mosec_server --address 127.0.0.1 --port {port} --timeout 120000 "
        "--log-level warning",
        "/inference",
    ),
    "BentoML": Server(
        "bentoml",
        "-m bentoml serve benchmarks.peers.bentoml_server:Front --host 127.0.0.1 --port {port}",
        "/label",
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    "Ray Serve": Server(
        "ray",
        "-m benchmarks.peers.ray_server {port}",
        "/",
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
}


def install(server: Server) -> Path:
    """Return the Python of the server's virtual environment, and make that first if it is missing.

    Raises `UserError` if pip fails.
    """
    folder = CACHE / server.package
    python, mark = folder / "bin/python", folder / "installed.txt"
    wanted = _wanted(server)
    if mark.exists() and mark.read_text() == "\n".join(wanted):
        return python
    print(f"installing {wanted[0]} into {folder} ...", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        check=False,
    )
    if done.returncode:
        raise UserError(f"pip cannot install {wanted[0]}: see above")
    mark.write_text("\n".join(wanted))
    return python


def _wanted(server: Server) -> list[str]:
    """The server's requirement, then everybody's."""
    servers = {one.package for one in SERVERS.values()}
    return [server.pin, *(pin for pin in _pins() if _package(pin) not in servers)]


def _pins() -> list[str]:
    lines = VERSIONS.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _package(pin: str) -> str:
    return pin.partition("==")[0].partition("[")[0]


@contextmanager
def running(server: Server, settings: Settings, photo: bytes) -> Iterator[Target]:
    """The server, from when it has labelled `photo` until the block ends.

    It gets the bundle, the threads and the largest batch of `settings`.
    """
    python = install(server)
    environment = {
        **server.environment,
        BUNDLE: str(settings.folder.resolve()),
        THREADS: str(settings.threads),
        BATCH: str(settings.batch_views // VIEWS),
        "PYTHONPATH": str(ROOT),
        # What it starts finds its environment's commands.
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }

    def ready(url: str) -> bool:
        return label(Target(url + server.path, form=server.form), photo) is not None

    command = [str(python), *server.command.split()]
    with served(command, ready, environment) as one:
        yield Target(one.url + server.path, form=server.form)


def label(target: Target, photo: bytes) -> str | None:
    """The class that the server gives the photo; None where it gives no answer."""
    body, kind = body_of(photo, target.form)
    answer = ask(target.url, body, kind)
    return None if answer is None else str(answer["label"])
