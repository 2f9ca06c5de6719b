"""The README is run, and the documents' numbers are those of the result files."""

import os
import pathlib
import re
import shlex

import pytest

from benchmarks import plots, tables
from stt_jax import evaluate, export, forget, generate, prepare, recommend, serve, train
from stt_jax.config import (
    CityConfig,
    DeviceConfig,
    EvaluationConfig,
    ExportConfig,
    ForgetConfig,
    ListsConfig,
    RequestConfig,
    ServeConfig,
    WatchConfig,
    flagfile,
)

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in tables.DOCUMENTS)


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.mark.parametrize("code", blocks("python"), ids=["library", "kernel"])
def test_the_python_examples_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    if "recommend_items" in code:
        assert "known" in capsys.readouterr().out


def test_every_command_line_parses():
    groups = {
        generate: {"city": CityConfig},
        prepare: prepare.GROUPS,
        train: {**train.FLAG_GROUPS, "devices": DeviceConfig, "watching": WatchConfig},
        evaluate: {"evaluation": EvaluationConfig},
        recommend: {"request": RequestConfig, "lists": ListsConfig},
        serve: {"serving": ServeConfig},
        export: {"export": ExportConfig},
        forget: {"forgetting": ForgetConfig},
    }
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    seen = set()
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        for line in lines:
            found = re.match(r"\s*python -m stt_jax\.(\w+) (.*)", line)
            if found:
                module = next(m for m in groups if m.__name__ == f"stt_jax.{found.group(1)}")
                flagfile.parse(
                    groups[module], [module.__name__, *shlex.split(found.group(2), comments=True)]
                )
                seen.add(module)
    finally:
        os.chdir(here)
    assert seen == set(groups)


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.name)
def test_the_numbers_are_those_of_the_result_files(path):
    text = path.read_text(encoding="utf-8")
    assert tables.fill(text) == text


def test_every_table_stands_in_one_document():
    assert sorted(re.findall(r"<!-- begin (.+?) -->", TEXT)) == sorted(tables.SECTIONS)


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_at_is_there(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        pointed = path if not file else path.parent / file
        assert pointed.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", pointed.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert heading in anchors, target


def test_the_plots_are_those_of_the_result_files():
    drawn = plots.draw()
    assert drawn
    for name, text in drawn.items():
        assert (plots.DOCS / name).read_text(encoding="utf-8") == text
    shown = re.findall(r"\((?:docs/)?(\w+\.svg)\)", TEXT)
    # Others are drawn by matplotlib, whose files differ between versions.
    assert set(shown) <= {*drawn, "attention_lengths.svg", "scaling.svg"}
    assert "(docs/nyc_published.svg)" in README


def test_a_bar_is_as_long_as_its_value():
    drawn = plots.bars("title <&>", [("a", 0.4, "red"), ("b", 0.1, "blue")])
    lengths = [float(width) for width in re.findall(r'width="([\d.]+)" height="18"', drawn)]
    assert lengths[0] == 4 * lengths[1]
    assert "title &lt;&amp;&gt;" in drawn
