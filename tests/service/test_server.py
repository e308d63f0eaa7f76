"""The process: how it starts, how it ends, and what it prints if it cannot start."""

import signal
import socket
import subprocess
import sys
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
    assert "gave up after the 1 seconds of drain_seconds" in capfd.readouterr().err


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
