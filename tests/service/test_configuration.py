import json
import re
from pathlib import Path

import pytest

from hfh_embed.cli import main
from hfh_embed.errors import InputError
from service.configuration import CONFIG_VARIABLE, LIBRARY_VARIABLES, WORKER_VARIABLE, resolve
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent


def _yaml(folder, text: str) -> Path:
    path = folder / "hfh.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path) -> None:
    file = _yaml(tmp_path, "max_ids: 1\nport: 1\nworkers: 3\naccess_log: true\n")
    found = resolve({"max_ids": "3"}, {"HFH_MAX_IDS": "2", "HFH_PORT": "2", "HFH_HOST": ""}, file)
    settings, origins = found.settings, found.origins
    assert (settings.max_ids, settings.port, settings.workers, settings.host) == (3, 2, 3, "127.0.0.1")
    assert settings.access_log is True
    assert (origins["max_ids"], origins["port"]) == ("flag", "environment")
    assert (origins["workers"], origins["host"]) == (f"file {file}", "default")


def test_the_file_may_be_named_by_the_environment(tmp_path) -> None:
    file = _yaml(tmp_path, "paths: [a.hfh, b.hfh]\n")
    assert resolve({}, {CONFIG_VARIABLE: str(file)}, None).settings.paths == (Path("a.hfh"), Path("b.hfh"))


def test_json_is_yaml_and_an_empty_file_sets_nothing(tmp_path) -> None:
    assert resolve({}, {}, _yaml(tmp_path, '{"max_ids": 5}')).settings.max_ids == 5
    assert resolve({}, {}, _yaml(tmp_path, "")).settings == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_id: 5", "'max_id' in .* is not a setting; did you mean max_ids"),
        ("colour: red", "'colour' in .* is not a setting; see hfh serve --help"),
        ("5: 5", "'5' in .* is not a setting"),
        ("- max_ids", "holds a list"),
        ("max_ids: [", "not valid YAML, line"),
        ("max_ids: ten", r"max_ids in .* 'ten': .*integer"),
        ("max_ids: 0", r"max_ids in .* 0: .*greater"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("#" * 1_048_577, "longer than"),
        ("[" * 100_000, "not valid YAML"),
        ("\0\1", r"not valid YAML: [^\n]+$"),
    ],
)
def test_an_unusable_file_is_told(text: str, message: str, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        resolve({}, {}, _yaml(tmp_path, text))


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("HFH_MAX_ID", "environment variable HFH_MAX_ID is not a setting; did you mean HFH_MAX_IDS"),
        ("HFH_COLOUR", "environment variable HFH_COLOUR is not a setting"),
        ("HFH_max_ids", "environment variable HFH_max_ids is not a setting; did you mean HFH_MAX_IDS"),
    ],
)
def test_unknown_variables_are_refused(variable: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve({}, {variable: "5"}, None)


def test_an_unusable_variable_is_named() -> None:
    with pytest.raises(InputError, match=r"HFH_PORT 'tcp://10\.0\.0\.1:80'"):
        resolve({}, {"HFH_PORT": "tcp://10.0.0.1:80"}, None)


def test_the_librarys_own_variables_are_let_through() -> None:
    read = {
        variable
        for path in (ROOT / "hfh_embed").rglob("*.[pch]*")
        if path.suffix in (".py", ".cpp", ".h", ".hpp")
        for variable in re.findall(r"\"(HFH_[A-Z_]+)\"", path.read_text())
    }
    assert read <= LIBRARY_VARIABLES, "a variable that the library reads must be known here"
    others = dict.fromkeys((*LIBRARY_VARIABLES, WORKER_VARIABLE), "x")
    assert resolve({}, others, None).settings == Settings()


def test_the_effective_settings_are_shown_with_their_origin_and_without_passwords(
    tmp_path, monkeypatch, capsys
) -> None:
    file = _yaml(tmp_path, "rate_limit_url: redis://user:secret@host:6379/0\n")
    monkeypatch.setenv("HFH_MAX_IDS", "7")
    arguments = ["serve", "a.hfh", "--config", str(file), "--port", "0", "--access-log", "true", "--show-config"]
    assert main([*arguments, "--json"]) == 0
    shown = {line["setting"]: (line["value"], line["from"]) for line in json.loads(capsys.readouterr().out)}
    assert set(shown) == set(Settings.model_fields)
    assert shown["rate_limit_url"] == ("redis://***@host:6379/0", f"file {file}")
    assert shown["max_ids"] == (7, "environment")
    assert shown["access_log"] == (True, "flag")
    assert shown["paths"] == (["a.hfh"], "flag")
    assert shown["host"] == ("127.0.0.1", "default")
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "secret" not in text
    assert re.search(r"^max_ids +7 +environment$", text, re.MULTILINE)


def test_a_file_that_is_not_there_is_told(capsys) -> None:
    assert main(["serve", "--config", "/nowhere/hfh.yaml"]) == 2
    assert "/nowhere/hfh.yaml: No such file" in capsys.readouterr().err
