"""Measure what the Open Inference Protocol costs, against POST /classify with a photo as the body.

    python -m benchmarks.protocols
    python -m benchmarks.protocols --traces
    python -m benchmarks.protocols BUNDLE

One client sends one photo after the other, each way in turns, every other turn in reverse order.
The service's processor time for a photo bounds its throughput, and other work on the machine
disturbs it less than the clock. With --traces the ways are POST /classify to a service without
traces, to another one without, whose cost is the error of the measurement, and to two that send
traces to a collector on this machine: of one request of a hundred, and of all.

Without a bundle it is the tests' own, whose graph takes next to no time: the time that a graph
takes varies by more than what is measured here.
"""

import argparse
import base64
import http.client
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from math import comb
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final
from unittest.mock import patch
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.photos import read_photos
from benchmarks.served import Served, taillift
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.folder import read_manifest
from taillift.models.errors import UserError
from tests.support.palette import write_bundle

HEADER: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Way:
    """A way to send a photo: where to, and how; `times` are processor and wall seconds a photo."""

    name: str
    service: Served
    requests: Sequence[tuple[str, bytes, Mapping[str, str]]]
    times: list[tuple[float, float]] = field(default_factory=list)

    def run(self) -> None:
        """Send every photo once."""
        address = urlsplit(self.service.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        before, start = self.service.processor_seconds, perf_counter()
        for path, body, headers in self.requests:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            answer.read()
            if answer.status != http.client.OK:
                raise UserError(f"{path} was answered with {answer.status}")
        count = len(self.requests)
        taken = self.service.processor_seconds - before
        self.times.append((taken / count, (perf_counter() - start) / count))
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="by default that of the tests")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; by default the sample's")
    parser.add_argument("--count", type=int, default=100, help="photos in a turn")
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--traces", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    photos = read_photos(options.photos)[: options.count]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = options.bundle or write_bundle(folder / "bundle")
        if options.traces:
            ways = list(with_traces(stack, bundle, photos))
        else:
            service = stack.enter_context(taillift(bundle))
            name = read_manifest(bundle).name
            ways = list(protocols(service, name, photos))
        for way in ways:
            way.run()  # Warm.
            way.times.clear()
        for turn in range(options.turns):
            for way in ways if turn % 2 else reversed(ways):
                way.run()
    out = options.out or RESULTS / ("traces.md" if options.traces else "protocols.md")
    write_result(out, [table(ways)])


def protocols(service: Served, name: str, photos: Sequence[bytes]) -> Iterator[Way]:
    infer = f"/v2/models/{name}/infer"
    ensemble = {"ensemble": "off"}
    yield Way(
        "/classify, the photo as the body",
        service,
        [("/classify?ensemble=off", photo, {"Content-Type": "image/jpeg"}) for photo in photos],
    )
    elements = [len(photo).to_bytes(4, "little") + photo for photo in photos]
    yield Way(
        "BYTES, binary",
        service,
        [binary(infer, "BYTES", [1], data, ensemble) for data in elements],
    )
    documents = [
        {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "data": [base64.b64encode(photo).decode()],
        }
        for photo in photos
    ]
    yield Way(
        "BYTES, base64 in JSON",
        service,
        [
            (infer, json.dumps({"inputs": [one], "parameters": ensemble}).encode(), {})
            for one in documents
        ],
    )
    images = [Image.open(BytesIO(photo)).convert("RGB") for photo in photos]
    yield Way(
        "UINT8, binary",
        service,
        [
            binary(infer, "UINT8", [1, one.height, one.width, 3], one.tobytes(), ensemble)
            for one in images
        ],
    )


def binary(
    path: str, datatype: str, shape: Sequence[int], data: bytes, parameters: Mapping[str, str]
) -> tuple[str, bytes, Mapping[str, str]]:
    """Return a request with a binary tensor, whose answer is binary, too: as tritonclient sends."""
    size = {"binary_data_size": len(data)}
    tensor = {"name": "image", "shape": shape, "datatype": datatype, "parameters": size}
    asked = {**parameters, "binary_data_output": True}
    text = json.dumps({"inputs": [tensor], "parameters": asked}).encode()
    return path, text + data, {HEADER: str(len(text))}


def with_traces(stack: ExitStack, bundle: Path, photos: Sequence[bytes]) -> Iterator[Way]:
    requests = [
        ("/classify?ensemble=off", photo, {"Content-Type": "image/jpeg"}) for photo in photos
    ]
    for name in ("no traces", "no traces, another service"):
        yield Way(name, stack.enter_context(taillift(bundle)), requests)
    endpoint = stack.enter_context(collector())
    for name, share in (("1 % of the requests traced", "0.01"), ("all traced", "1")):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": share,
        }
        with patch.dict(os.environ, variables):
            service = stack.enter_context(taillift(bundle))
        yield Way(name, service, requests)


@contextmanager
def collector() -> Iterator[str]:
    """Run a collector that takes everything and keeps nothing; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def table(ways: Sequence[Way]) -> str:
    """Return the table of all ways; costs are medians over the turns, against the first way."""
    rows = []
    for way in ways:
        processor, wall = (median(one[which] for one in way.times) for which in (0, 1))
        row = [way.name, f"{1_000 * processor:.2f}", f"{1_000 * wall:.2f}"]
        if way is ways[0]:
            rows.append([*row, "", "", ""])
            continue
        pairs = list(zip(way.times, ways[0].times, strict=True))
        more = sorted(mine[0] - first[0] for mine, first in pairs)
        low, high = interval_of_median(more)
        share = median(mine[0] / first[0] - 1 for mine, first in pairs)
        cost = [f"{1e3 * median(more):+.2f}", f"{1e3 * low:+.2f} to {1e3 * high:+.2f}"]
        rows.append([*row, *cost, f"{100 * share:+.1f} %"])
    titles = ["", "CPU ms a photo", "ms a photo", "CPU ms more", "95 %", "against the first"]
    return markdown(titles, rows)


def interval_of_median(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds the median with at least 95 %, if there are six values.

    Its ends are values themselves (Conover, Practical Nonparametric Statistics, 1999, 3.2), so a
    turn that was disturbed moves it no further than any other above or below.
    """
    count, left_out = len(ordered), 0
    while 2 * sum(comb(count, index) for index in range(left_out + 2)) <= 0.05 * 2**count:
        left_out += 1
    return ordered[left_out], ordered[-1 - left_out]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
