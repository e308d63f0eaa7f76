"""The fuzz lane: what it found stays mended, a minute finds nothing, and it can find."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from benchmarks.served import Served, taillift
from tests.fuzz.__main__ import CORPUS, fuzz, main
from tests.fuzz.mutations import WAYS
from tests.fuzz.seeds import images, messages
from tests.fuzz.verdict import Inspector, megapixels, read_answers

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def answering(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, seconds: float = 0
) -> Iterator[Served]:
    """Serve the same answer to everything, and take so many processor seconds for each."""

    taken = 0.0

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal taken
            while self.request.recv(65_536):
                pass
            taken += seconds
            self.request.sendall(answer)

    monkeypatch.setattr(Served, "processor_seconds", property(lambda _: taken))
    monkeypatch.setattr(Served, "peak_memory", property(lambda _: 100.0))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Served(f"http://127.0.0.1:{server.server_address[1]}", 0)
        server.shutdown()
        thread.join()


def test_nothing_that_was_ever_found_is_a_fault_again(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(map(str, CORPUS.glob("*.http")))
    assert main(["--replay", *files]) == 0, capsys.readouterr().out


def test_a_quarter_of_a_minute_of_it_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same inputs each time: `scripts/fuzz --seed N` is for others.
    found = tmp_path / "found"
    assert main(["--minutes", "0.25", "--seed", "0", "--found", str(found)]) == 0, (
        capsys.readouterr().out
    )


def test_millions_of_empty_lines_behind_a_request_take_no_time(bundle: Path) -> None:
    wire = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + b"\r\n" * 2_000_000
    with taillift(bundle) as service:
        assert Inspector(service).fault(wire) is None


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (GOOD.replace(b"200 OK", b"500 Oh"), "answered with 500"),
        (GOOD.replace(b"200 OK", b"302 Found"), "answered with 302"),
        (GOOD[:-1], "cut off"),
        (GOOD + b"more", "is not an answer"),
        (GOOD.replace(b"{}", b"{]"), "Expecting property name"),
        (GOOD.replace(b"Content-Length", b"Content Length"), "broken header"),
    ],
)
def test_a_wrong_answer_is_found_saved_and_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes, fault: str
) -> None:
    with answering(monkeypatch, answer) as service:
        monkeypatch.setattr("tests.fuzz.__main__.MOST_FAULTS", 1)
        assert fuzz(service, 0, 1, tmp_path / "found") == 1
        (file,) = (tmp_path / "found").iterdir()
        assert fault in (Inspector(service).fault(file.read_bytes()) or "")


def test_an_input_that_always_takes_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = messages()["jpeg"].wire()
    with answering(monkeypatch, GOOD, seconds=0.06) as service:
        assert Inspector(service).fault(wire) is None
    with answering(monkeypatch, GOOD, seconds=0.09) as service:
        assert Inspector(service).fault(wire) == "took 0.09 CPU s, over 0.07"


def test_an_unwell_service_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, GOOD.replace(b"200", b"503")) as service:
        assert Inspector(service).health() == "/healthz answered with [503]"
    with answering(monkeypatch, GOOD) as service:
        assert Inspector(service).health() is None
        monkeypatch.setattr(Served, "peak_memory", property(lambda _: 9_000.0))
        assert Inspector(service).health() == "9000 MiB were in use"


def test_an_answer_to_head_has_no_body() -> None:
    head = GOOD.removesuffix(b"{}")
    assert read_answers(head, b"HEAD / HTTP/1.1\r\n\r\n") == [200]
    with pytest.raises(ValueError, match="not an answer"):
        read_answers(GOOD, b"HEAD / HTTP/1.1\r\n\r\n")


def test_the_same_number_gives_the_same_input() -> None:
    pictures, requests = list(images().values()), list(messages().values())
    for number in range(200):
        first, second = (
            WAYS[number % len(WAYS)](requests[number % 9], pictures, Random(number))
            for _ in range(2)
        )
        assert first == second


def test_the_sizes_of_all_images_of_a_request_are_added_up() -> None:
    wire = messages()["form"].wire()
    assert megapixels(wire) == pytest.approx(3 * 64 * 48 / 1e6)
