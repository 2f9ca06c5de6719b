"""Our side of the PyTorch peer: starts it in its environment and asks it for one run at a time."""

import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

import numpy as np

_SERVER = pathlib.Path(__file__).with_name("attention_torch.py")
PEERS = ("torch_sdpa_compiled", "torch_flex")
MOST_ERRORS = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest output


class Client:
    """One PyTorch process with one candidate; calling it runs once and gives the milliseconds."""

    def __init__(self, python, peer, mode, dtype, inputs_path, expected):
        """Starts the process and checks its answer."""
        # A thread that spins while it waits would take a core from whoever's turn it is.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
        self._process: Any = subprocess.Popen(
            [python, str(_SERVER), peer, mode, dtype, str(inputs_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        ready = self._answer()
        self.error, self.peak_bytes = ready.get("error"), ready.get("peak_bytes")
        if self.error is None:
            out = np.asarray(ready["out"], np.float32).reshape(expected.shape)
            difference = np.abs(out - expected).max() / np.abs(expected).max()
            if difference > MOST_ERRORS[dtype]:
                self.error = f"left out, its answer is wrong: relative error {difference:.1e}."

    @property
    def process_id(self):
        """Of the PyTorch process."""
        return self._process.pid

    def _answer(self):
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def __call__(self):
        """Runs once."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._answer()["ms"])

    def stop(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def start(python, inputs, mode, expected, peers=PEERS, dtype="float32"):
    """Gives a client for each peer that answers right; says why the others do not.

    Args:
      python: the interpreter of an environment with PyTorch.
      inputs: (arrays, tables, sides, out_gradient), NumPy.
      mode: "forward" or "forward+backward".
      expected: the right output of the last queries of the first two rows.
      peers: which of `PEERS`.
      dtype: that PyTorch computes in.

    Returns:
      The clients by name.
    """
    arrays, tables, sides, out_gradient = inputs
    named = dict(zip(("q", "k", "v"), arrays, strict=True)) | tables | sides
    clients = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "inputs.npz"
        np.savez(path, out_gradient=out_gradient, **named)
        for peer in peers:
            client = Client(python, peer, mode, dtype, path, expected)
            if client.error is None:
                clients[peer] = client
            else:
                print(f"{peer} {mode}: {client.error}")
                client.stop()
    return clients
