import ast
import importlib
import importlib.metadata
import pathlib

import pytest

import stt_jax


@pytest.mark.parametrize("name", sorted(stt_jax._HOMES))
def test_a_public_name_is_what_its_home_defines(name):
    home = importlib.import_module(f"stt_jax.{stt_jax._HOMES[name]}")
    public = getattr(stt_jax, name)
    assert public is getattr(home, name)
    assert public.__doc__
    assert f"{public.__module__}.".startswith(f"{home.__name__}.")


def test_all_names_every_public_name_and_no_other():
    assert set(stt_jax.__all__) == {*stt_jax._HOMES, "__version__"} == set(dir(stt_jax))
    with pytest.raises(AttributeError, match="'stt_jax' has no attribute 'nothing'"):
        stt_jax.nothing  # noqa: B018


def test_no_public_name_is_also_a_module_which_would_take_its_place_when_imported():
    folder = pathlib.Path(stt_jax.__file__).parent
    assert not {path.stem for path in folder.iterdir()} & set(stt_jax.__all__)


def test_type_checkers_are_told_the_same_homes():
    tree = ast.parse(pathlib.Path(stt_jax.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module.removeprefix("stt_jax.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("stt_jax.")
        for alias in node.names
    }
    assert told == stt_jax._HOMES
    assert (pathlib.Path(stt_jax.__file__).parent / "py.typed").is_file()


def test_the_version_is_that_of_the_package_or_says_that_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"stt_jax": "7.1"}.__getitem__)
    assert stt_jax.__version__ == "7.1"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert stt_jax.__version__ == "0+source"
