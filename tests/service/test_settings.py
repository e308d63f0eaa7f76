"""Each setting has a flag, an environment variable and a row in the documentation."""

import inspect
import math
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from taillift.models.errors import UserError
from taillift.service import settings as settings_module
from taillift.service.serve_cli import NOT_FLAGS, app, serve
from taillift.service.settings import GROUPS, Settings, batch_views, read_settings, settings_table


def test_every_setting_except_a_secret_has_a_flag() -> None:
    # Every user of a machine can list its processes with their flags.
    assert set(inspect.signature(serve).parameters) == set(Settings.model_fields) - NOT_FLAGS


def test_every_setting_says_what_happens() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_the_environment_sets_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILLIFT_PORT", "9000")
    monkeypatch.setenv("TAILLIFT_MAX_IMAGES", "3")
    settings = read_settings(bundle=Path("b"), port=9001, max_images=None)
    assert (settings.port, settings.max_images) == (9001, 3)


def test_a_wrong_value_is_named_with_its_setting() -> None:
    with pytest.raises(UserError, match=r"setting provider: .*'tpu'"):
        read_settings(bundle=Path("b"), provider="tpu")


def test_a_batch_is_small_on_a_cpu_by_default() -> None:
    assert read_settings(bundle=Path("b")).batch_views == 10
    assert read_settings(bundle=Path("b"), provider="cuda").batch_views == 40
    assert read_settings(bundle=Path("b"), batch_views=7).batch_views == 7


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UserError, match="setting prot"):
        read_settings(bundle=Path("b"), prot=1)


@pytest.mark.parametrize("command", ["serve", "watch"])
def test_help_describes_every_flag_with_its_variable_and_default(command: str) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [command, "--help"])
    options = {
        name for name in Settings.model_fields if f"--{name.replace('_', '-')} " in result.output
    }
    if command == "watch":
        # These are options of its own there, in words of their own.
        options -= {"max_pixels", "port"}
    assert (
        options
        == {
            "serve": set(Settings.model_fields) - NOT_FLAGS - {"bundle"},
            "watch": {
                "reference",
                "tail_level",
                "tail_window_seconds",
                "host",
                "class_metrics",
            },
        }[command]
    )
    for name in options:
        (line,) = [
            line for line in result.output.splitlines() if f"--{name.replace('_', '-')} " in line
        ]
        field = Settings.model_fields[name]
        assert field.description
        assert field.description in line
        assert f"[env var: TAILLIFT_{name.upper()}]" in line
        if (text := default(field)) != "unset":
            assert f"[default: ({text})]" in line


def test_help_shows_ten_common_settings_first_and_the_others_in_groups() -> None:
    grouped = [name for names in GROUPS.values() for name in names.split()]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= set(Settings.model_fields)
    common = set(Settings.model_fields) - set(grouped) - NOT_FLAGS - {"bundle"}
    assert len(common) == 10
    lines = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["serve", "--help"]).output.splitlines()
    titles = [line for line in lines if line.startswith("╭─")]
    assert [title.split()[1] for title in titles] == [
        *("Arguments", "Options"),
        *(group.split()[0] for group in GROUPS),
    ]
    first_group = lines.index(titles[2])
    for name in common:
        assert any(f"--{name.replace('_', '-')} " in line for line in lines[:first_group]), name


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr("taillift.service.server.serve", served.append)
    monkeypatch.setenv("TAILLIFT_PORT", "9000")
    monkeypatch.setenv("TAILLIFT_DRAIN_SECONDS", "7")
    monkeypatch.setenv("TAILLIFT_KEYS", "secret")
    result = CliRunner().invoke(app, ["serve", "b", "--port", "9001", "--class-metrics", "off"])
    assert result.exit_code == 0, result.output
    (settings,) = served
    assert settings.bundle == Path("b")
    assert (settings.port, settings.drain_seconds, settings.class_metrics) == (9001, 7, "off")
    assert settings.keys is not None


@pytest.mark.parametrize("flag", ["--keys", "--prot"])
def test_an_unknown_flag_is_refused(flag: str) -> None:
    result = CliRunner().invoke(app, ["serve", "b", flag, "x"])
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_the_document_has_every_setting_with_its_default_and_what_it_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    for name, field in Settings.model_fields.items():
        assert f"| `{name}` | {default(field)} | {field.description} |" in text
    assert f"\n\n{settings_table()}\n\n" in text, "run scripts/settings-table"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "10 or 40" if field.default_factory is batch_views else "one per core"
    return "unset" if field.default is None else str(field.default)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("TAILLIFT_KEY", "TAILLIFT_KEYS"),
        ("TAILLIFT_API_KEYS", "TAILLIFT_KEYS"),
        ("TAILLIFT_KEY_FILE", "TAILLIFT_KEYS_FILE"),
        ("TAILLIFT_MAXIMAGES", "TAILLIFT_MAX_IMAGES"),
        ("taillift_alowed_hosts", "TAILLIFT_ALLOWED_HOSTS"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(UserError, match=f'{variable} is not a setting .did you mean "{nearest}"'):
        read_settings(bundle=Path("b"))


def test_variables_of_compose_kubernetes_and_training_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "TAILLIFT_CACHE_GIB",
        "TAILLIFT_PUBLISHED_PORT",
        "TAILLIFT_BUNDLE_DIR",
        "TAILLIFT_STOP_GRACE",
        "TAILLIFT_SERVICE_HOST",
        "TAILLIFT_SERVICE_PORT_HTTP",
        "TAILLIFT_PORT_8000_TCP_ADDR",
        "TAILLIFT_WATCH_SERVICE_HOST",
        "TAILLIFT_WATCH_PORT_9101_TCP",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TAILLIFT_WATCH_PORT", "tcp://10.96.0.1:9101")
    assert read_settings(bundle=Path("b")).port == 8000


def test_the_address_of_a_service_of_kubernetes_is_not_taken_for_a_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAILLIFT_PORT", "tcp://10.96.0.1:80")
    with pytest.raises(UserError, match="enableServiceLinks: false"):
        read_settings(bundle=Path("b"))


@pytest.mark.parametrize("name", ["HOST", "PORT", "TAIL_FILE", "KEYS_FILE", "MAX_IMAGES"])
@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_blank_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, blank: str
) -> None:
    monkeypatch.setenv(f"TAILLIFT_{name}", blank)
    with pytest.raises(UserError, match=f"TAILLIFT_{name} is blank"):
        read_settings(bundle=Path("b"))


def test_a_blank_flag_is_refused() -> None:
    for given in ({"host": ""}, {"reference": " "}, {"cors_origins": ""}):
        with pytest.raises(UserError, match="is blank"):
            read_settings(bundle=Path("b"), **given)


@pytest.mark.parametrize(
    "given",
    [
        {"allowed_hosts": "http://a.example"},
        {"allowed_hosts": "a.example:80"},
        {"allowed_hosts": "a.example/b, localhost"},
        {"cors_origins": "app.example.org"},
        {"cors_origins": "https://app.example.org/"},
        {"cors_origins": "https://*.example.org"},
    ],
)
def test_what_is_neither_a_host_nor_an_origin_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"setting (allowed_hosts|cors_origins): .* is not an? "):
        read_settings(bundle=Path("b"), **given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("50000 100000\n", 0.5), ("max 100000", math.inf), ("", math.inf)],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: float
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(settings_module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(settings_module, "QUOTA_V1", tmp_path / "none")
    assert settings_module.quota_cores() == expected
    assert settings_module.cores() >= 1
    if expected < 1:
        assert settings_module.cores() == 1


def test_the_quota_of_an_older_container_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("QUOTA_V1", "300000\n"), ("PERIOD_V1", "100000\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(settings_module, name, tmp_path / name)
    monkeypatch.setattr(settings_module, "QUOTA", tmp_path / "none")
    assert settings_module.quota_cores() == 3
    (tmp_path / "QUOTA_V1").write_text("-1\n")
    assert settings_module.quota_cores() == math.inf
