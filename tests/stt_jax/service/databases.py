"""Databases for tests: SQLite files, and a PostgreSQL server of this test run's own."""

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile

import pytest


def find_postgres():
    """The folder of PostgreSQL's programs; None = it is not installed."""
    found = shutil.which("initdb")
    folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    return pathlib.Path(found).resolve().parent if found else (folders[-1] if folders else None)


@contextlib.contextmanager
def postgres():
    """The SQLAlchemy URL of a new server; skips where PostgreSQL is not installed."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    owner = {}
    if os.geteuid() == 0:  # the server refuses to be run by root
        try:
            owner = {"user": pwd.getpwnam("postgres").pw_name}
        except KeyError:
            pytest.skip("there is no user postgres to run the server as")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if owner:
            shutil.chown(folder, "postgres")
        options = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder} | owner
        data = f"{folder}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], **options
        )
        control = [programs / "pg_ctl", "-D", data, "-w", "-l", f"{folder}/log"]
        server = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        subprocess.run([*control, "-o", server, "start"], **options)
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **options)
