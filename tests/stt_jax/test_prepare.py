"""The command as a person runs it: what it prints, and one clear line for every mistake."""

import gzip
import os
import pathlib
import subprocess
import sys

import pytest

from stt_jax import prepare
from stt_jax.data.store import open_log

ROOT = pathlib.Path(__file__).parents[2]
GOOD = "user_id,POI_id,UTC_time,latitude,longitude\n" + "".join(
    f"u{i % 3},p{i % 4},2012-04-{1 + i:02d}T10:00:00Z,40.7,-74.0\n" for i in range(20)
)


def run(*flags):
    """The exit code of the command in this process."""
    return prepare.main(["prepare.py", *map(str, flags)])


def error_of(capsys, *flags):
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(*flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def flags(log_file, tmp_path):
    """Flags of a run that works."""
    return [
        f"--input={log_file}",
        f"--output={tmp_path / 'out'}",
        "--item=POI_id",
        "--time=UTC_time",
        "--latitude=latitude",
        "--longitude=longitude",
    ]


def run_as_a_user(*flags):
    return subprocess.run(
        [sys.executable, "-m", "stt_jax.prepare", *map(str, flags)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_what_every_step_did(flags, tmp_path):
    done = run_as_a_user(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "read log.csv (delimited by comma)",
        "UTC_time read as ISO 8601 with zone",
        "3 users (3 in training), 4 items",
        "from 2012-04-01T10:00:00Z to 2012-04-20T10:00:00Z",
    ):
        assert words in done.stdout
    assert open_log(tmp_path / "out").num_events == 20


def test_a_mistake_is_one_line_and_exit_code_2(flags):
    done = run_as_a_user(*flags, "--item=POI")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--item=POI" in done.stderr
    assert "did you mean 'POI_id'" in done.stderr


def test_help_shows_every_flag_in_its_group(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for words in ("\nfiles:\n", "\ncolumns:\n", "\ncleaning:\n", "\nsplit:\n", "--time_format"):
        assert words in text


def test_a_flagfile_and_later_flags(flags, tmp_path):
    path = tmp_path / "run.flags"
    path.write_text("# a comment\n" + "\n".join(flags) + "\n--test_fraction=0.5\n", "utf-8")
    assert run(f"--flagfile={path}", "--test_fraction=0.25", "--data_root=/elsewhere") == 0
    assert open_log(tmp_path / "out").meta.statistics["test_events"] == 5


def test_relative_inputs_start_from_the_data_root(flags, log_file, tmp_path):
    assert run(*flags, f"--data_root={tmp_path}", f"--input={log_file.name}") == 0


def test_missing_file(capsys, flags, log_file):
    text = error_of(capsys, *flags, f"--input={log_file.with_name('log.csv.gz')}")
    assert "log.csv.gz: no such file" in text
    assert "near it: log.csv" in text


def test_empty_file(capsys, flags, tmp_path):
    path = tmp_path / "empty.csv"
    path.touch()
    assert "empty.csv is empty" in error_of(capsys, *flags, f"--input={path}")


def test_header_without_rows(capsys, flags, tmp_path):
    path = tmp_path / "header.csv"
    path.write_text(GOOD.splitlines()[0] + "\n", encoding="utf-8")
    assert "header.csv has no rows" in error_of(capsys, *flags, f"--input={path}")


@pytest.mark.parametrize("kept", [0.95, 0.5, 0.01])
def test_truncated_gzip(capsys, flags, tmp_path, kept):
    packed = gzip.compress("".join(GOOD * 400).encode(), mtime=0)
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(packed[: max(3, int(kept * len(packed)))])
    text = error_of(capsys, *flags, f"--input={path}")
    assert "cut.csv.gz: the gzip file is cut off or damaged" in text


def test_wrong_column(capsys, flags):
    text = error_of(capsys, *flags, "--time=utc_tme")
    assert "--time=utc_tme" in text
    assert "did you mean 'UTC_time'" in text
    assert "Columns: user_id, POI_id" in text


def test_no_time_column(capsys, flags):
    text = error_of(capsys, *flags, "--time=")
    assert "--time is missing" in text
    assert "--untimed" in text
    assert "UTC_time" in text


def test_unknown_time_format(capsys, flags, log_file):
    log_file.write_text(GOOD.replace("2012-04-", "4/").replace("T10:00:00Z", "/2012"), "utf-8")
    text = error_of(capsys, *flags)
    assert "--time=UTC_time: the format of the times is not known" in text
    assert "row 1 '4/01/2012'" in text
    assert run(*flags, "--time_format=%m/%d/%Y") == 0


def test_wrong_time_format(capsys, flags):
    text = error_of(capsys, *flags, "--time_format=%d/%m/%Y")
    assert "time is not pattern '%d/%m/%Y' in 20 of 20 rows" in text
    assert "log.csv row 1: '2012-04-01T10:00:00Z'" in text


def test_bad_time_pattern(capsys, flags):
    assert "--time_format=%Q" in error_of(capsys, *flags, "--time_format=%Q")
    assert "give seconds, milliseconds" in error_of(capsys, *flags, "--time_format=daily")


def test_mixed_time_formats(capsys, flags, log_file):
    log_file.write_text(GOOD.replace("2012-04-07T10:00:00Z", "1333476000"), "utf-8")
    text = error_of(capsys, *flags)
    assert "row 7 '1333476000' reads as unix seconds (1 rows)" in text


def test_swapped_coordinates(capsys, flags, log_file):
    log_file.write_text(GOOD.replace("40.7,-74.0", "-114.1,51.0"), encoding="utf-8")
    text = error_of(capsys, *flags)
    assert "--latitude=latitude --longitude=longitude: latitude and longitude swapped in 20" in text
    assert "'-114.1, 51.0'" in text


def test_strict_stops_at_one_broken_value(capsys, flags, log_file):
    log_file.write_text(GOOD.replace("2012-04-07T10:00:00Z", "soon"), "utf-8")
    assert run(*flags) == 0
    assert "dropped 1: time is not ISO 8601 with zone" in capsys.readouterr().out
    text = error_of(capsys, *flags, "--overwrite", "--strict")
    assert "row 7: 'soon'" in text


def test_rows_with_too_few_fields_are_counted(capsys, flags, log_file):
    log_file.write_text(GOOD + "u1,p1\n", encoding="utf-8")
    assert run(*flags) == 0
    assert "dropped 1: cannot be split into its columns" in capsys.readouterr().out
    assert "'u1,p1'" in error_of(capsys, *flags, "--overwrite", "--strict")


def test_unknown_time_zone(capsys, flags):
    text = error_of(capsys, *flags, "--timezone=America/NewYork")
    assert "America/New_York" in text


def test_wrong_encoding(capsys, flags, log_file):
    log_file.write_bytes(GOOD.replace("p1", "café").encode("latin-1"))
    assert "--encoding" in error_of(capsys, *flags)
    assert "--encoding=utf8000 is not known" in error_of(capsys, *flags, "--encoding=utf8000")
    assert run(*flags, "--encoding=latin-1") == 0


def test_unknown_flag(capsys, flags):
    assert "did you mean --latitude" in error_of(capsys, *flags, "--latitud=x")


def test_bad_comparison(capsys, flags):
    assert "--drop_if=POI_id" in error_of(capsys, *flags, "--drop_if=POI_id")
    assert "--drop_if=price" in error_of(capsys, *flags, "--drop_if=price<0")


def test_everything_filtered_out(capsys, flags):
    text = error_of(capsys, *flags, "--min_user_events=100")
    assert "no rows are left after the step 'k-core'" in text


def test_contradicting_flags(capsys, flags):
    assert "names a column twice" in error_of(capsys, *flags, "--context=latitude,latitude")
    assert "--untimed contradicts" in error_of(capsys, *flags, "--untimed")
    assert "go together" in error_of(capsys, *flags, "--longitude=")
    assert "--split=given needs" in error_of(capsys, *flags, "--split=given")
    assert "leave nothing to train on" in error_of(capsys, *flags, "--test_fraction=0.95")
    assert "--split=leave_one_out" in error_of(capsys, *flags, "--time=", "--untimed")
    assert "one of" in error_of(capsys, *flags, "--timezone=UTC", "--utc_offset_minutes=60")
    assert "begins at" in error_of(
        capsys, *flags, "--validation_from=2012-04-10", "--test_from=2012-04-05"
    )
    assert "no events to train on" in error_of(capsys, *flags, "--validation_from=2011-01-01")
    assert "--test_from=yesterday" in error_of(capsys, *flags, "--test_from=yesterday")


def test_output_that_holds_a_log_or_other_files(capsys, flags, tmp_path):
    assert run(*flags) == 0
    assert "add --overwrite" in error_of(capsys, *flags)
    note = tmp_path / "out" / "note.txt"
    note.write_text("mine", encoding="utf-8")
    assert run(*flags, "--overwrite") == 0
    assert note.read_text(encoding="utf-8") == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.csv").touch()
    text = error_of(capsys, *flags, f"--output={tmp_path / 'other'}", "--overwrite")
    assert "holds other files (data.csv)" in text


def test_output_that_cannot_be_written(capsys, flags, log_file):
    assert "is a file" in error_of(capsys, *flags, f"--output={log_file}")
    assert "cannot be written" in error_of(capsys, *flags, f"--output={log_file}/inside")


def test_a_failed_run_keeps_the_log_that_was_there(capsys, flags, tmp_path):
    assert run(*flags) == 0
    before = open_log(tmp_path / "out").meta
    error_of(capsys, *flags, "--overwrite", "--min_user_events=100")
    assert open_log(tmp_path / "out").meta == before


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "prepare").glob("*.flags")), ids=str)
def test_every_flagfile_parses(path):
    from stt_jax.config import flagfile

    flagfile.parse(prepare.GROUPS, ["", f"--flagfile={path}", "--output=somewhere"])
    assert path.read_text(encoding="utf-8").startswith("# ")
