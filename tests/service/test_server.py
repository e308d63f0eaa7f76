"""The process: how it starts, how it ends, and what it prints if it cannot start."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from taillift.models.errors import UserError
from taillift.service.serve_cli import app
from tests.support import palette, serving
from tests.support.palette import CLASSES, SLOW, photo
from tests.support.serving import process, sample, top_labels, until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_it_answers_what_it_accepted_and_ends_with_0(
    bundle: Path, number: signal.Signals
) -> None:
    labels = list(CLASSES)
    with process(bundle, "--batch-views", "5") as (server, client), ThreadPoolExecutor(8) as pool:
        slow = pool.submit(client.post, "/classify", content=photo(SLOW))
        fast = [
            pool.submit(client.post, "/classify", content=photo(CLASSES[label][0]))
            for label in labels
        ]
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="decode") == 8)
        server.send_signal(number)
        assert slow.result().status_code == 200
        assert [top_labels(future.result()) for future in fast] == [[label] for label in labels]
        assert server.wait(timeout=20) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/healthz")


def test_a_device_that_hangs_does_not_keep_the_process_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(palette, "SLOW_ROUNDS", 10_000_000)
    bundle = palette.write_bundle(tmp_path / "hanging")
    with (
        process(bundle, "--drain-seconds", "1") as (server, client),
        socket.create_connection((client.base_url.host, client.base_url.port)) as connection,
    ):
        body = photo(SLOW)
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="queue") == 1)
        server.terminate()
        assert server.wait(timeout=20) == 1
        assert_shutting_down(connection)
    errors = capfd.readouterr().err
    assert "gave up after the 1 seconds of drain_seconds" in errors
    assert "Traceback" not in errors


def assert_shutting_down(connection: socket.socket) -> None:
    """Read an answer to the end of the connection, and check that it is the right problem."""
    connection.settimeout(20)
    head, _, body = b"".join(iter(lambda: connection.recv(2**16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert document["type"] == "urn:taillift:problem:not-ready"
    assert document["detail"] == "the service is shutting down"


@pytest.mark.parametrize("sent", [0, 1, 100])
def test_what_is_late_at_the_end_of_a_drain_is_told_that_the_service_shuts_down(
    bundle: Path, sent: int, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--drain-seconds", "1", "--notice-seconds", "0.5")
    with (
        process(bundle, *flags) as (server, client),
        socket.create_connection((client.base_url.host, client.base_url.port)) as connection,
    ):
        head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + photo(SLOW)[:sent] + bytes(max(0, sent - 60)))
        assert client.get("/healthz").status_code == 200
        server.terminate()
        assert_shutting_down(connection)
        assert server.wait(timeout=20) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_it_is_not_ready_for_a_moment_before_the_port_is_closed(bundle: Path) -> None:
    red = photo(CLASSES["red"][0])
    with process(bundle, "--notice-seconds", "2") as (server, client):
        server.terminate()
        until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json()["detail"] == "the service is shutting down"
        again = httpx.post(client.base_url.join("/classify"), content=red, trust_env=False)
        assert top_labels(again) == ["red"], "a balancer that has not noticed yet"
        assert server.wait(timeout=20) == 0


def test_a_second_signal_closes_the_port_at_once(bundle: Path) -> None:
    with process(bundle, "--notice-seconds", "3600") as (server, client):
        server.terminate()
        until(lambda: client.get("/readyz").status_code == 503)
        server.terminate()
        assert server.wait(timeout=20) == 0


# The command `taillift`, which says when it has begun.
BEGUN = """
import taillift.__main__ as command
print("begun", flush=True)
command.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0])
def test_a_signal_in_the_first_seconds_ends_in_one_line(
    bundle: Path, number: signal.Signals, seconds: float
) -> None:
    command = [sys.executable, "-c", BEGUN, "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "begun\n"
        time.sleep(seconds)
        server.send_signal(number)
        _, errors = server.communicate(timeout=20)
    assert errors in ("", f"error: stopped by {number.name} while starting\n")
    assert server.returncode in (0, 128 + number, -number)


def test_a_signal_while_the_bundle_is_opened_ends_in_order(bundle: Path) -> None:
    command = [*serving.SERVE, str(bundle), "--port", "0"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert "http://127.0.0.1:" in server.stdout.readline()
            server.send_signal(number)
            _, errors = server.communicate(timeout=20)
        assert errors in ("", f"error: stopped by {number.name} while starting\n")
        assert server.returncode in (0, 128 + number)


# A service that never finishes decoding one image, which is marked after its end.
HANGING = """
from threading import Event
from taillift.service.inference import decoder
opened = decoder.open_image
def hangs(data, max_pixels):
    if data.endswith(b"for ever"): Event().wait()
    return opened(data, max_pixels)
decoder.open_image = hangs
from taillift.service.serve_cli import app; app()
"""


def test_a_decoder_that_hangs_neither_keeps_the_process_alive_nor_loses_the_tail(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tail = ("--tail-file", str(tmp_path / "tail"))
    monkeypatch.setattr(serving, "SERVE", [sys.executable, "-c", HANGING, "serve"])
    red = photo(CLASSES["red"][0])
    with (
        process(known, *tail, "--decode-threads", "2", "--drain-seconds", "1") as (server, client),
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(client.post, "/classify", content=red + b"for ever")
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="read") == 1)
        assert top_labels(client.post("/classify", content=red)) == ["red"]
        server.terminate()
        assert server.wait(timeout=20) == 1
    assert "gave up after the 1 seconds of drain_seconds" in capfd.readouterr().err
    with process(known, *tail) as (_, client):
        assert sample(client, "taillift_window_predictions") == 1


def test_metrics_can_have_a_port_of_their_own(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        process(bundle, "--metrics-port", str(port)) as (_, client),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as watcher,
    ):
        assert "taillift_ready 1.0" in watcher.get("/metrics").text
        assert client.get("/metrics").status_code == 404
        assert client.get("/metrics%0A").status_code == 404
        assert client.get("/metrics").headers["content-type"] == "application/problem+json"
        for path in ("/model", "/docs", "/openapi.json", "/"):
            assert watcher.get(path).status_code == 404
        assert watcher.post("/classify", content=photo(CLASSES["red"][0])).status_code == 404
        assert top_labels(client.post("/classify", content=photo(CLASSES["red"][0]))) == ["red"]
        for port_client in (client, watcher):
            for path in ("/readyz", "/healthz"):
                assert port_client.get(path).status_code == 200


def test_a_port_in_use_is_one_line(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", str(bundle), "--port", port])
    assert_one_line(result.exception, "Address already in use", port)


def test_a_folder_that_is_not_a_bundle_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert_one_line(result.exception, str(tmp_path), "not a bundle")


def test_a_wrong_setting_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILLIFT_MAX_IMAGES", "0")
    result = CliRunner().invoke(app, ["serve", str(bundle)])
    assert_one_line(result.exception, "max_images", "greater than or equal to 1")


def test_a_bundle_found_wrong_after_the_start_ends_the_process(bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from taillift.service.server import serve\n"
        "from taillift.service.settings import read_settings\n"
        "from taillift.models.errors import UserError\n"
        "try: serve(read_settings(bundle=Path(sys.argv[1]), port=0))\n"
        "except UserError as error: sys.exit(f'error: {error}')\n"
    )
    broken = bundle.with_name("broken")
    broken.mkdir()
    for file in bundle.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "golden.npz").write_bytes(b"other")
    command = [sys.executable, "-c", code, str(broken)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "golden.npz is not the file that the manifest lists" in run.stderr


def test_the_service_imports_no_torch() -> None:
    code = (
        "import taillift.service.serve_cli, taillift.service.server, sys;"
        "print(sorted({'torch', 'torchvision', 'open_clip', 'timm', 'taillift.training',"
        " 'taillift.models.lift'}"
        " & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def assert_one_line(error: BaseException | None, *words: str) -> None:
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


def test_a_hangup_reads_the_priors_again_and_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    priors = tmp_path / "priors.json"
    weights = dict.fromkeys(CLASSES, 1)
    priors.write_text(json.dumps({"first": weights}))
    red = photo(CLASSES["red"][0])

    def named() -> list[str]:
        return list(client.get("/model").json()["priors"])

    with process(bundle, "--priors", str(priors)) as (server, client):
        assert named() == ["uniform", "train", "first"]
        priors.write_text(json.dumps({"second": weights}))
        server.send_signal(signal.SIGHUP)
        until(lambda: named() == ["uniform", "train", "second"])
        priors.write_text("broken")
        server.send_signal(signal.SIGHUP)
        assert top_labels(client.post("/classify", content=red)) == ["red"]
        assert named() == ["uniform", "train", "second"]
