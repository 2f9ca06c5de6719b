"""Serve: recommendations over HTTP that follow events as they come.

    python -m stt_jax.serve --run=runs/nyc

Then http://127.0.0.1:8000/ shows a page, and /docs every route. Accepted events are in the run
directory's events.db, or where --store says; compiled functions in its folder compiled, so that
only the first start takes its time. Needs pip install 'stt_jax[serve]'.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import pathlib
import socket
import sys
from collections.abc import Sequence

from stt_jax import command
from stt_jax.config import ServeConfig

_LEAST_TOKEN = 16  # characters
_BACKLOG = 2048  # connections that wait to be accepted


def serve(serving: ServeConfig) -> None:
    """Serves until it is stopped."""
    token = read_token(serving)
    try:
        import jax
        import uvicorn

        from stt_jax.service import logs
        from stt_jax.service.api import create_app
        from stt_jax.service.guards import impatient_protocol
        from stt_jax.service.service import Service
        from stt_jax.service.store import StoreError
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; serving needs pip install 'stt_jax[serve]'"
        ) from error
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.join(serving.run, "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with _listen(serving) as listening:
        try:
            service = Service(serving)
        except StoreError as error:
            raise ValueError(f"--store: {error}") from error
        host, port = listening.getsockname()[:2]
        print(f"serving http://{host}:{port}/", flush=True)
        logs.set_up()
        config = uvicorn.Config(
            create_app(service, token=token),
            http=impatient_protocol(serving.receive_s),
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
        server = uvicorn.Server(config)
        # Not by a signal: uvicorn passes those on when it has ended, and nothing would be said.
        service.on_failure = functools.partial(setattr, server, "should_exit", True)
        server.run([listening])
    if service.failure:
        raise ValueError(service.failure)


def read_token(serving: ServeConfig) -> str:
    """The token that callers have to send; "" = none.

    Raises:
      ValueError: an address that others can reach without a token, or a token that is too short.
    """
    if not serving.api_token_file:
        if not _is_loopback(serving.host):
            raise ValueError(
                f"--host={serving.host} can be reached by others, so a token is needed: write one "
                "of 16 characters or more to a file and name it by --api_token_file"
            )
        return ""
    token = pathlib.Path(serving.api_token_file).read_text(encoding="utf-8").strip()
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"--api_token_file={serving.api_token_file} must hold one token of {_LEAST_TOKEN} or "
            "more visible characters, e.g. the output of: openssl rand -hex 32"
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(serving: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((serving.host, serving.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        reason = os.strerror(error.errno or 0)
        raise ValueError(
            f"cannot listen on --host={serving.host} --port={serving.port}: {reason}"
        ) from error
    return listening


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(serve, {"serving": ServeConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
