# Every target is what a person could type; README.md shows the plain commands.
PYTHON ?= python3

.PHONY: quickstart test lint bench

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv-test/installed: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --editable '.[test,lint]'
	touch $@

# A generated city, from nothing to one person's ten recommendations.
quickstart: .venv/installed
	.venv/bin/python -m stt_jax.generate --output=city
	.venv/bin/python -m stt_jax.prepare --flagfile=configs/prepare/city.flags --overwrite
	.venv/bin/python -m stt_jax.train --flagfile=configs/quickstart.flags
	.venv/bin/python -m stt_jax.evaluate --run=runs/quickstart --optimum=city/optimum.arrow
	.venv/bin/python -m stt_jax.recommend --run=runs/quickstart --user=u000123 --time=2024-03-01T12:30

test: .venv-test/installed
	.venv-test/bin/python -m pytest

lint: .venv-test/installed
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy

# Every benchmark that needs no log, at its smallest: that they run, not what they say.
bench: .venv-test/installed
	for name in attention input prepare realtime resume training; do \
	    .venv-test/bin/python -m benchmarks.bench_$$name --quick || exit 1; \
	done
