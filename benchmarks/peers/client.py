"""Our side of a training peer: starts it in its environment and asks it for one thing at a time."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
from typing import Any

NUM_THREADS = 2
_HERE = pathlib.Path(__file__).parent


class Client:
    """A process of one peer; it answers one line of JSON with one line of JSON.

    Attributes:
      ready: what it said once it had loaded: versions, number of parameters, sizes.
    """

    def __init__(
        self, python: str, server: str, options: dict[str, Any], environment: dict[str, str]
    ) -> None:
        """Starts it.

        Args:
          python: the interpreter of its environment.
          server: its file in this folder.
          options: what the file's docstring says.
          environment: variables on top of those of this process.

        Raises:
          RuntimeError: it ended before it was ready.
        """
        threads = str(NUM_THREADS)
        # A thread that spins while it waits would take a core from whoever's turn it is.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "passive",
            "KMP_BLOCKTIME": "0",
            **environment,
        }
        self._process: Any = subprocess.Popen(
            [python, str(_HERE / server), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._server = server
        self.ready = self._answer()

    def __call__(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process, if it has not ended by itself."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        # Libraries print on standard output too: an answer is a line that begins so.
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{self._server} ended with status {self._process.wait()}")
