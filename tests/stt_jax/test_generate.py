import pytest

from stt_jax import generate

TINY = ["--num_users=3", "--num_places=20", "--num_days=7"]


def test_command_writes_the_city_and_prints_its_optimum(tmp_path, capsys):
    output = tmp_path / "new" / "city"
    assert generate.main(["generate", f"--output={output}", *TINY]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["log.csv.gz", "optimum.arrow"]
    printed = capsys.readouterr().out
    assert "3 people at 20 places" in printed
    assert "request time known: accuracy@1 0." in printed
    assert "request time unknown: accuracy@1 0." in printed


def test_help_explains_every_flag(capsys):
    assert generate.main(["generate", "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("output", "num_users", "num_places", "num_days", "informative", "seed"):
        assert f"--{flag}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_people=3"], "--num_people"),
        (["--num_users=many"], "num_users"),
        (["--num_places=2"], "--num_places must be at least 20; got 2"),
    ],
)
def test_wrong_flag_gets_one_line_and_a_failing_exit_code(tmp_path, capsys, arguments, message):
    assert generate.main(["generate", f"--output={tmp_path}", *arguments]) != 0
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert generate.main(["generate", f"--output={tmp_path / 'taken'}", *TINY]) != 0
    assert "taken" in capsys.readouterr().err
