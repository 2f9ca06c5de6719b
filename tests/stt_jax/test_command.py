import dataclasses
import subprocess
import sys

import pytest
import rich.table

from stt_jax import command
from stt_jax.config import ModelConfig, check, option
from stt_jax.config.flagfile import from_flagfile, to_flagfile


@dataclasses.dataclass(frozen=True)
class Cake:
    layers: int = option(3, "Number of layers.")
    sugar: float = option(0.5, "Fraction of sugar.")
    fruits: tuple[str, ...] = option(("apple",), "Fruits on top.")
    iced: bool = option(True, "Whether it is iced.")
    shape: str = option("round", "Its shape.", choices=("round", "square"))

    def __post_init__(self):
        check(self.layers > 0, f"--layers={self.layers} must be positive")


@pytest.fixture
def baked(capsys):
    def call(*arguments):
        seen = []
        code = command.run(
            lambda cake: seen.append(cake), {"cake": Cake}, ["bake.py", *arguments], usage="Bakes."
        )
        return code, seen[0] if seen else None, capsys.readouterr()

    return call


def test_flags_become_the_config(baked):
    code, cake, _ = baked("--layers=5", "--fruits=plum,pear", "--noiced", "--shape=square")
    assert code == 0
    assert cake == Cake(5, 0.5, ("plum", "pear"), False, "square")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--layer=5", "unknown flag --layer; did you mean --layers?"),
        ("--layers=many", "--layers=many"),
        ("--layers=0", "--layers=0 must be positive"),
        ("--shape=oval", "round"),
        ("cake", "unexpected argument 'cake'"),
        ("--flagfile=nowhere.flags", "nowhere.flags"),
        ("--flagfile", "--flagfile"),
        ("--flagfiles=cake.flags", "unknown flag --flagfiles"),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line(baked, argument, message):
    code, cake, output = baked(argument)
    assert code == 2
    assert cake is None
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_the_command_line_wins_over_its_flagfile_wherever_it_stands(baked, tmp_path):
    flagfile = tmp_path / "cake.flags"
    flagfile.write_text("# A comment line.\n--layers=7\n--sugar=0.1\n")
    for arguments in (
        ("--layers=2", f"--flagfile={flagfile}"),
        (f"--flagfile={flagfile}", "--layers=2"),
        ("--flagfile", str(flagfile), "--layers=2"),
        ("--layers", "2", "--flagfile", str(flagfile)),
    ):
        _, cake, _ = baked(*arguments)
        assert (cake.layers, cake.sugar) == (2, 0.1)


@pytest.mark.parametrize(
    "fruits",
    [
        ("a b", "c"),
        (),
        ("",),
        ("", "c"),
        ("n=x,1",),
        ('"quoted"', "b"),
        ('half a " quote', "a,b", "c"),
        ("'single'", "#c", 'x="a",b'),
    ],
)
def test_what_is_written_as_a_flagfile_is_read_back(tmp_path, fruits):
    cake = Cake(2, 1e-4, fruits, False, "square")
    path = tmp_path / "cake.flags"
    path.write_text(to_flagfile(cake))
    assert from_flagfile(path, {"cake": Cake}) == {"cake": cake}


def test_help_explains_every_flag_by_group(baked):
    code, _, output = baked("--help")
    assert code == 0
    assert "cake:" in output.out
    for field in dataclasses.fields(Cake):
        assert f"--{field.name}" in output.out
        assert field.metadata["help"] in output.out
    last = output.out.splitlines()[-1]
    assert last == "STT_JAX_TRACEBACK=1 in the environment shows where an error came from."


def test_our_own_mistakes_keep_their_traceback():
    def broken(cake):
        raise AssertionError("ours")

    with pytest.raises(AssertionError):
        command.run(broken, {"cake": Cake}, ["bake.py"], usage="")


@pytest.mark.parametrize("name", ["generate", "prepare", "train", "evaluate", "recommend"])
def test_every_command_answers_help_and_refuses_unknown_flags(name):
    """As a user runs them."""

    def call(argument):
        return subprocess.run(
            [sys.executable, "-m", f"stt_jax.{name}", argument],
            capture_output=True,
            text=True,
            check=False,
        )

    shown = call("--help")
    assert shown.returncode == 0
    assert "usage: python -m stt_jax." + name in shown.stdout
    refused = call("--no_such_flag=1")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines() == [
        line for line in refused.stderr.strip().splitlines() if line.startswith("error: ")
    ]


def test_configs_refuse_nonsense_in_the_library_too():
    with pytest.raises(ValueError, match="must divide"):
        ModelConfig(width=30, num_heads=4)


def test_a_process_ends_with_the_code_of_its_command_and_all_that_it_printed():
    script = (
        "import atexit; from stt_jax import command; atexit.register(print, 'end');"
        "command.run_process(lambda: print('word' * 20_000) or 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout == "word" * 20_000 + "\nend\n"


def test_a_table_shows_texts_as_they_are(capsys):
    table = rich.table.Table(title="next for [/b]")
    table.add_column("[name]")
    table.add_row("Alien [remastered] :smile: [/]")
    command.table_console().print(table)
    said = capsys.readouterr().out
    for text in ("next for [/b]", "[name]", "Alien [remastered] :smile: [/]"):
        assert text in said
