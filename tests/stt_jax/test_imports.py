"""CONTRIBUTING.md says which part may import which."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# From the bottom up; a package stands for all of its modules. Kernels are used from any floor.
FLOORS = {
    "config": ("config", "batch", "mesh", "metrics"),
    "data": (
        "data", "histories", "trends", "successions", "likely_times", "counting", "relations",
        "baselines", "baseline_tuning",
    ),
    "model": ("model",),
    "training": ("training",),
    "ranking, evaluation, export": (
        "session", "approximate", "ranking", "recommender", "lists", "evaluation", "export",
    ),
    "service": ("service",),
    "command lines": (
        "command", "prepare", "train", "evaluate", "recommend", "serve", "forget", "generate",
    ),
}  # fmt: skip
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS.values()) for part in parts}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    """Full names of what a file imports of stt_jax and stt_kernels, wherever it stands in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith(("stt_jax.", "stt_kernels."))]


def part_of(name):
    """Of "stt_jax.data.store" it is "data"; of "stt_kernels" nothing."""
    return name.split(".")[1] if name.startswith("stt_jax.") else None


@pytest.mark.parametrize(
    "path", modules("stt_jax"), ids=lambda path: str(path.relative_to(ROOT / "stt_jax"))
)
def test_an_import_never_points_up(path):
    own = path.relative_to(ROOT / "stt_jax").with_suffix("").parts[0]
    if own == "__init__":
        return  # it names what is public, of every floor
    is_command = re.search(r"^def main\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    for name in imported(path):
        part = part_of(name)
        if part == "command":
            assert is_command, f"{path.name} is no command line and imports {name}"
        elif part is not None:
            assert FLOOR_OF[part] <= FLOOR_OF[own], f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda path: path.name)
def test_kernels_import_nothing_of_the_models(path):
    assert not [name for name in imported(path) if name.startswith("stt_jax.")]


def test_every_module_has_a_floor_and_the_floors_are_those_of_the_document():
    parts = {path.stem for path in (ROOT / "stt_jax").iterdir() if path.suffix == ".py"}
    parts |= {path.parent.name for path in (ROOT / "stt_jax").glob("*/__init__.py")}
    assert parts - {"__init__"} == set(FLOOR_OF)
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert f"never points up this list: {'; '.join(reversed(FLOORS))}." in text
