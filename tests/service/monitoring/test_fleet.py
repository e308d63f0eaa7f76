"""`taillift watch --prometheus`: all replicas of a service, watched as one."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Event, Lock, Thread
from time import time as clock
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest
from prometheus_client import Metric, start_http_server
from typer.testing import CliRunner

from benchmarks.streams import few_shot_bundle
from taillift.models.bundle.folder import read_manifest
from taillift.models.errors import UserError
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.exporter import ClassSeries, TailSeries
from taillift.service.monitoring.fleet import Fleet, FleetWatch, spread
from taillift.service.monitoring.prometheus import OWN_LABELS, PrometheusHistory, Scrape
from taillift.service.monitoring.recorder import Monitoring, model_profile
from taillift.service.serve_cli import app
from taillift.service.settings import read_settings
from taillift.service.tail.distributions import Indices
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.reference import Source
from tests.support.palette import CLASSES, new_photo
from tests.support.serving import form, running, sample, scrape, until
from tests.support.stack import check, free_port, prometheus

CLASS_COUNT, LOST, BEFORE = 20, 3, 2_000
UNIFORM = Rules(Source.UNIFORM)
FINDINGS = {"taillift_class_silent", "taillift_class_drift"}
COMMAND = [sys.executable, "-c", "from taillift.service.serve_cli import app; app()", "watch"]


def profile() -> ModelProfile:
    bundle = few_shot_bundle(CLASS_COUNT)
    labels = tuple(f"class {index}" for index in range(CLASS_COUNT))
    return ModelProfile(
        "v", labels, tuple(bundle.groups), tuple(bundle.counts), tuple(bundle.pairs)
    )


def stream(count: int, each: int = 1) -> Indices:
    """Draw labels [N], each `each` times; one class is lost after `BEFORE`."""
    random, bundle = np.random.default_rng(0), few_shot_bundle(CLASS_COUNT)
    mix = np.ones((2, CLASS_COUNT))
    mix[1, LOST] = 0
    rates = mix / mix.sum(1, keepdims=True) @ bundle.matrix
    parts = [
        random.choice(CLASS_COUNT, size // each, p=rate)
        for size, rate in zip((BEFORE, count - BEFORE), rates, strict=True)
    ]
    return np.repeat(np.concatenate(parts), each)


class Replica:
    """Counts predictions as a service does; `seen` is its own monitor."""

    def __init__(self, name: str, start: float = 0.0, version: str = "v") -> None:
        self.name, self.start, self.version = name, start, version
        self.counts = np.zeros(CLASS_COUNT, np.int64)
        self.seen = TailMonitor(profile(), UNIFORM, lambda: 0.0)

    def predict(self, labels: Indices) -> None:
        for label in labels.tolist():
            self.seen.observe(label, 0.9)
        self.counts += np.bincount(labels, minlength=CLASS_COUNT)

    def scrape(self, time: float) -> Scrape:
        self.seen.refresh()
        effect = self.seen.dependence.design_effect
        return Scrape(self.name, time, self.version, self.start, effect, self.counts.copy())


def new_fleet(lines: list[str] | None = None) -> Fleet:
    said: list[str] = [] if lines is None else lines
    return Fleet(profile(), UNIFORM, said.append)


def found(monitor: TailMonitor) -> list[bool]:
    monitor.refresh()
    return [*monitor.drift.found.tolist(), *monitor.silence.found.tolist()]


def looks(labels: Indices, size: int) -> Iterator[tuple[float, Indices]]:
    for number, begin in enumerate(range(0, len(labels), size), 1):
        yield 60.0 * number, labels[begin : begin + size]


@pytest.mark.parametrize("size", [128, 100])
def test_a_split_stream_gives_the_findings_of_one_service_look_by_look(size: int) -> None:
    """The tests take batches of 128: then all is the same, else a look may be in between."""
    fleet, single = new_fleet(), TailMonitor(profile(), UNIFORM, lambda: 0.0)
    replicas = [Replica("a"), Replica("b")]
    monitors = {"fleet": fleet.monitor, "single": single}
    monitors |= {replica.name: replica.seen for replica in replicas}
    first: dict[str, int] = {}
    differing = 0
    for number, (time, labels) in enumerate(looks(stream(5_000), size)):
        for label in labels.tolist():
            single.observe(label, 0.9)
        for index, replica in enumerate(replicas):
            replica.predict(labels[index::2])
        fleet.look([replica.scrape(time) for replica in replicas], time)
        differing += found(fleet.monitor) != found(single)
        if size == 128:
            np.testing.assert_allclose(fleet.monitor.drift.e_values, single.drift.e_values)
        for name, monitor in monitors.items():
            if monitor.silence.found[LOST]:
                first.setdefault(name, number)
    assert differing <= (size != 128)
    assert fleet.monitor.predictions == single.predictions == 5_000
    assert BEFORE < size * first["single"] < BEFORE + 1_000
    assert abs(first["fleet"] - first["single"]) <= (size != 128)
    assert min(first["a"], first["b"]) > first["fleet"]


def test_replicas_that_restart_come_and_go_are_counted_once() -> None:
    fleet, a, b = new_fleet(), Replica("a", start=-1e6), Replica("b", start=-1e6)
    a.predict(np.full(500, 1))
    fleet.remember([a.scrape(0)])
    a.predict(np.full(30, 2))
    fleet.look([a.scrape(60)], 60)
    # It ends with predictions that only its last scrape has, and begins anew.
    a.predict(np.full(10, 2))
    last, a = a.scrape(70), Replica("a", start=80)
    a.predict(np.full(600, 2))
    fleet.look([last, a.scrape(120)], 120)
    # One that is new counts from 0, and an old one, from elsewhere, from its first scrape on.
    c = Replica("c", start=130)
    c.predict(np.full(7, 3))
    b.predict(np.full(10_000, 4))
    fleet.look([b.scrape(170), c.scrape(180)], 180)
    b.predict(np.full(5, 4))
    fleet.look([b.scrape(240)], 240)
    fleet.look([], 300)
    fleet.look([b.scrape(360), c.scrape(360)], 360)
    expected = np.bincount([2] * 640 + [3] * 7 + [4] * 5, minlength=CLASS_COUNT)
    assert fleet.monitor.window.counts.tolist() == fleet.counts.tolist() == expected.tolist()


def test_another_bundle_and_missing_classes_are_named_once_and_not_counted() -> None:
    lines: list[str] = []
    fleet, other = new_fleet(lines), Replica("other", version="w")
    for number in range(3):
        other.predict(np.full(100, 1))
        time = 60.0 * number
        fleet.look([other.scrape(time), Scrape("few", time, "v", 0, 1, None)], time)
    assert lines == [
        "other is not counted, because it serves another bundle (w)",
        "few is not counted, because it does not export every class of the bundle: set "
        "class_metrics=on",
    ]
    assert fleet.replicas == fleet.monitor.predictions == 0
    # The bundle is swapped: what the other one predicted does not count.
    other.version = "v"
    other.predict(np.full(8, 2))
    fleet.look([other.scrape(300)], 300)
    assert fleet.monitor.window.counts.tolist() == [0, 0, 8, *[0] * (CLASS_COUNT - 3)]


def test_what_replicas_have_learned_of_dependence_weakens_the_evidence_of_the_fleet() -> None:
    """Counts have no order: only the replicas see that each thing comes twenty times."""
    fleet, replica, single = new_fleet(), Replica("a"), TailMonitor(profile(), UNIFORM, float)
    for time, labels in looks(stream(20_000, each=20), 5_000):
        replica.predict(labels)
        for label in labels.tolist():
            single.observe(label, 0.9)
        single.refresh()
        fleet.look([replica.scrape(time)], time)
    effect = single.dependence.design_effect
    assert effect > 10
    assert fleet.monitor.dependence.design_effect >= effect


def test_counts_are_spread_evenly() -> None:
    labels = spread(np.array([8, 0, 4, 1]))
    assert np.bincount(labels, minlength=4).tolist() == [8, 0, 4, 1]
    assert [np.bincount(part, minlength=3)[2] for part in np.split(labels[:12], 4)] == [1] * 4
    assert spread(np.zeros(3, np.int64)).size == 0


def exports(bundle: Path, version: str, red: int, repeated: int, time: float) -> list[str]:
    """Return what a replica exports, as OpenMetrics with a time; `red` are its red photos."""
    target = 'job="taillift",instance="a"'
    lines = [f'taillift_model_info{{{target},name="x",version="{version}"}} 1 {time:.0f}']
    lines.append(f"process_start_time_seconds{{{target}}} 1 {time:.0f}")
    for info in read_manifest(bundle).classes if version != "other" else []:
        labels = f'{target},class="{info.label}",group="{info.group}"'
        count = red if info.label == "red" else 100
        lines.append(f"taillift_class_predictions_total{{{labels}}} {count} {time:.0f}")
        if repeated and info.label == "red":
            lines.append(f"taillift_class_repetitions_total{{{labels}}} {repeated} {time:.0f}")
    return lines


def test_what_another_bundle_did_between_two_scrapes_is_no_restart(
    bundle: Path, tmp_path: Path
) -> None:
    """The past of a real Prometheus: a bundle is swapped, and swapped back."""
    begin = clock() // 60 * 60 - 1800
    manifest = read_manifest(bundle)
    ours = manifest.version
    past = [(ours, 1_000, 0), (ours, 1_003, 1), ("other", 0, 0), (ours, 1_007, 2)]
    lines = [
        line
        for number, (version, red, repeated) in enumerate(past)
        for line in exports(bundle, version, red, repeated, begin + 60 * number)
    ]
    # Samples of a series have to stand together.
    text = "\n".join([*sorted(lines, key=lambda line: line.rsplit(" ", 2)[0]), "# EOF", ""])
    (tmp_path / "past.txt").write_text(text)
    files = (tmp_path / "past.txt", tmp_path / "data")
    check("promtool", "tsdb", "create-blocks-from", "openmetrics", *files)
    said: list[str] = []
    with prometheus("127.0.0.1:1", tmp_path) as server:
        history = PrometheusHistory(str(server.base_url), manifest.labels, 'instance="a"')
        fleet = Fleet(model_profile(bundle, manifest), UNIFORM, said.append)
        watch = FleetWatch(history, fleet, interval=60)
        fleet.remember(history.scrapes(begin - 300, begin))
        assert watch.catch_up(begin, begin + 310) == begin + 300
    assert fleet.counts.tolist() == [5, *[0] * 6]
    assert fleet.monitor.predictions == 5
    (line,) = said
    assert "serves another bundle (other)" in line


class LockedSeries(TailSeries):
    """A replica's series, which are read in another thread than it counts in."""

    lock = Lock()

    def collect(self) -> Iterator[Metric]:
        with self.lock:
            yield from super().collect()


def test_prometheus_is_read_through_its_absence_and_by_a_second_watcher(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real Prometheus scrapes two replicas; a third one counts all, and is not scraped."""
    manifest = read_manifest(known)
    settings = read_settings(bundle=known, reference="uniform")
    replicas, targets = list[Monitoring](), list[str]()
    with ExitStack() as stack:
        for _ in range(3):
            metrics = Metrics(manifest, "cpu")
            replicas.append(Monitoring(known, manifest, settings, metrics))
            metrics.registry.register(LockedSeries(replicas[-1], ClassSeries.ALL))
            server, _ = start_http_server(0, "127.0.0.1", metrics.registry)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            targets.append(f"127.0.0.1:{server.server_port}")
        jobs = [{"job_name": "taillift", "static_configs": [{"targets": targets[:2]}]}]
        history = stack.enter_context(prometheus("", tmp_path, {"scrape_configs": jobs}))
        watch, client = fleet_watch(known, "http://127.0.0.1:1", stack)
        until(lambda: "cannot be asked" in capsys.readouterr().err, seconds=60)
        watch.history.url = str(history.base_url).rstrip("/")
        until(lambda: sample(client, "taillift_fleet_replicas") == 2, seconds=60)
        copy = 4711
        answers = np.eye(len(CLASSES))
        with LockedSeries.lock:
            for number in range(1_800):
                answer, things = answers[number % 6], (copy,) if number < 40 else ()
                replicas[2].observe(answer, things=things)
                replicas[number // 6 % 2].observe(answer, things=things)
        counted = 1_760 + len(replicas[:2])
        until(lambda: sample(client, "taillift_window_predictions") == counted, seconds=60)
        alone = replicas[2].state()
        state = scrape(client)
        assert alone.classes.silent.tolist() == [False] * 6 + [True]
        black = frozenset({"class": "black", "group": "few"}.items())
        assert state["taillift_class_silent", black] == 1
        assert sum(name == "taillift_class_silent" for name, _ in state) == 1
        drifting = [
            value for (name, _), value in state.items() if name.endswith("drifting_classes")
        ]
        assert sum(drifting) == alone.drifting
        ours = {name for name, _ in state if name.startswith("taillift_")}
        assert not ours & {"taillift_class_predictions_total", "taillift_confidence_quantile"}
        assert capsys.readouterr().err.count("answers again") == 1
        later, again = fleet_watch(known, watch.history.url, stack)
        until(lambda: later.fleet.monitor.predictions == counted, seconds=60)
        assert sample(again, "taillift_silent_classes", group="few") == 1


def fleet_watch(bundle: Path, url: str, stack: ExitStack) -> tuple[FleetWatch, httpx.Client]:
    """Run a watcher in a thread, and return it and a client of its metrics."""
    manifest = read_manifest(bundle)
    # With an hour instead of a week there is little past to ask for.
    rules = Rules(Source.UNIFORM, window_seconds=3_600)
    fleet = Fleet(model_profile(bundle, manifest), rules, print)
    watch = FleetWatch(PrometheusHistory(url, manifest.labels), fleet, interval=1)
    port, ended = watch.serve("127.0.0.1", 0, ClassSeries.ALL), Event()
    thread = Thread(target=watch.run, args=[ended])
    thread.start()
    stack.callback(thread.join)
    stack.callback(ended.set)
    return watch, stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}"))


SERIES = '{"data": {"result": [{"metric": %s, "values": [[1, "%s"]]}]}}'
EMPTY = b'HTTP/1.1 200 OK\r\n\r\n{"data": {"result": []}}'
ANSWERS = {
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "cannot be asked"),
    "broken off": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "cannot be asked"),
    "nothing": (b"", "cannot be asked"),
    "a page": (b"HTTP/1.1 200 OK\r\n\r\n<html>\n", "sends no answer of Prometheus"),
    "nested": (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "sends no answer of Prometheus"),
    "an error page": (
        b"HTTP/1.1 502 Bad\r\n\r\n<html>\n<p>",
        "refuses the query (502): <html> <p>",
    ),
    **{
        name: (
            b"HTTP/1.1 200 OK\r\n\r\n" + (SERIES % (metric, value)).encode(),
            "sends no answer of Prometheus",
        )
        for name, metric, value in (
            ("no name", "{}", 1),
            ("another series", '{"__name__": "up"}', 1),
            ("not a number", '{"__name__": "process_start_time_seconds"}', "x"),
            ("no labels", "7", 1),
        )
    },
}


@contextmanager
def raw_server(*answers: bytes, asked: list[bytes] | None = None) -> Iterator[str]:
    """Serve these bytes to one connection each, and then nothing; add the bodies to `asked`."""
    left, bodies = list(answers), [] if asked is None else asked

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            bodies.append(self.rfile.read(length))
            self.wfile.write(left.pop(0) if left else b"")

    with TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def exported(services: Iterable[httpx.Client], time: float) -> bytes:
    """Return what a Prometheus that has just scraped these services answers."""
    series = [
        {
            "metric": {"__name__": name, "instance": str(number), **dict(labels)},
            "values": [[time, str(value)]],
        }
        for number, service in enumerate(services)
        for (name, labels), value in scrape(service).items()
        if name in OWN_LABELS
    ]
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({"data": {"result": series}}).encode()


def findings(client: httpx.Client) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return the series of classes that a service or a watcher calls silent or drifting."""
    return {series for series in scrape(client) if series[0] in FINDINGS}


def test_two_services_behind_a_split_stream_find_through_the_watcher_what_one_finds_alone(
    known: Path,
) -> None:
    """Photos are sent to real services, white ones never; the watcher reads what they export."""
    manifest, random, begin = read_manifest(known), np.random.default_rng(0), 60.0 * 30_000_000
    colours = [colour for label, (colour, _) in CLASSES.items() if label != "white"]
    white = ("taillift_class_silent", frozenset({"class": "white", "group": "few"}.items()))
    with ExitStack() as stack:
        names = ("alone", "left", "right")
        settings = {"max_images": 64, "reference": "uniform"}
        services = {name: stack.enter_context(running(known, **settings)) for name in names}
        replicas = [services["left"], services["right"]]
        fleet = Fleet(model_profile(known, manifest), UNIFORM, print)
        watch = FleetWatch(PrometheusHistory("http://x", manifest.labels), fleet, interval=60)
        port = watch.serve("127.0.0.1", 0, ClassSeries.ALL)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
        watched = {**services, "fleet": stack.enter_context(client)}
        with raw_server(exported(replicas, begin)) as watch.history.url:
            fleet.remember(watch.history.scrapes(begin - 60, begin))
        for look in range(1, 11):
            photos = [new_photo(colours[label]) for label in random.choice(6, 128)]
            sent = {"alone": (photos[:64], photos[64:]), "left": (photos[::2],)}
            for name, parts in {**sent, "right": (photos[1::2],)}.items():
                for part in parts:
                    files = form(*[("a.png", photo) for photo in part])
                    assert services[name].post("/classify", files=files).status_code == 200
            time = begin + 60 * look
            with raw_server(exported(replicas, time)) as watch.history.url:
                assert watch.catch_up(time - 60, time + 59) == time
            found = {name: findings(one) for name, one in watched.items()}
            assert found["fleet"] == found["alone"]
            if white in found["fleet"]:
                break
    assert white in found["fleet"]
    assert white not in found["left"] | found["right"]


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_is_no_answer_of_prometheus_is_one_line(kind: str) -> None:
    answer, words = ANSWERS[kind]
    with raw_server(answer) as url, pytest.raises(UserError) as found:
        PrometheusHistory(url, ["red"]).scrapes(0, 60)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("classes", "milliseconds"), [(CLASS_COUNT, [600_000]), (5, [300_000] * 2)]
)
def test_the_more_classes_the_less_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch, classes: int, milliseconds: list[int]
) -> None:
    """If five classes may be asked for twenty minutes, twenty may for five."""
    monkeypatch.setattr("taillift.service.monitoring.fleet.CLASSES_AT_ONCE", classes)
    monkeypatch.setattr("taillift.service.monitoring.fleet.SECONDS_AT_ONCE", 1_200.0)
    asked: list[bytes] = []
    with raw_server(*[EMPTY] * 9, asked=asked) as url:
        watch = FleetWatch(PrometheusHistory(url, list(profile().labels)), new_fleet(), 60)
        assert watch.catch_up(60_000, 60_610) == 60_600
    ranges = [re.search(r"\[(\d+)ms\]", parse_qs(body.decode())["query"][0]) for body in asked]
    assert [int(found[1]) for found in ranges if found] == milliseconds


class Waits(Event):
    """Ends at the first wait, and keeps how long it was to be."""

    seconds: float | None = None

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds = timeout
        self.set()
        return True


@pytest.mark.parametrize("is_away", [True, False])
def test_the_next_question_is_an_interval_later_at_most(is_away: bool) -> None:
    """Also while Prometheus is away, when a look is due at every moment."""
    with raw_server(*[EMPTY] * (1 if is_away else 9)) as url:
        fleet = Fleet(profile(), Rules(Source.UNIFORM, window_seconds=3_600), print)
        watch, ended = (
            FleetWatch(PrometheusHistory(url, list(profile().labels)), fleet, 60),
            Waits(),
        )
        watch.run(ended, lambda: 1e6 * 60 + 45)
    assert ended.seconds == (60 if is_away else 25)


def test_the_command_waits_for_prometheus_and_ends_at_a_signal(bundle: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [*COMMAND, str(bundle), "--prometheus", url, "--port", "0", "--interval", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[-1]
        assert f"Prometheus at {url} cannot be asked" in process.stderr.readline()
        assert "taillift_window_predictions 0.0" in httpx.get(address, trust_env=False).text
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "or a Prometheus with --prometheus, but not both"),
        (["past.csv", "--prometheus", "http://x"], "but not both"),
        (["--prometheus", "http://x", "--json"], "--json and --html are for past predictions"),
        (["--prometheus", "prometheus:9090"], "is not an address such as http://"),
        (["--prometheus", "http://[prometheus"], "is not an address such as http://"),
        (["--prometheus", "http://prometheus:9x"], "is not an address such as http://"),
        (["--prometheus", "http://ann:secret@prometheus"], "of Prometheus holds a user name"),
    ],
)
def test_a_wrong_argument_of_a_fleet_is_one_line(
    bundle: Path, arguments: list[str], words: str
) -> None:
    error = CliRunner().invoke(app, ["watch", str(bundle), *arguments]).exception
    assert isinstance(error, UserError)
    assert words in str(error)
