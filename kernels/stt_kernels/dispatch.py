"""Choosing an implementation, and saying which one and why."""

import logging
from collections.abc import Callable, Mapping, Sequence

_LOGGER = logging.getLogger("stt_kernels")
_LOGGED: set[tuple[str, str]] = set()


def choose(
    implementation: str | Sequence[str] | None,
    platform_order: Sequence[str],
    reasons: Mapping[str, Callable[[], str | None]],
) -> str:
    """Gives the name of the implementation to run.

    Args:
      implementation: None takes the first of `platform_order` that can; a sequence of names the
        first of those that can; one name is that implementation or an error.
      platform_order: names, best first.
      reasons: for every known name, a function that gives why it can't take this call, or None.

    Returns:
      The name.

    Raises:
      ValueError: a name is unknown, or there is none.
      NotImplementedError: no implementation asked for can take the call.
    """
    if implementation is None:
        names = list(platform_order)
    elif isinstance(implementation, str):
        names = [implementation]
    else:
        names = list(implementation)
    unknown = [name for name in names if name not in reasons]
    if unknown or not names:
        known = ", ".join(sorted(reasons))
        raise ValueError(
            f"implementation must be None, one of {known}, or a sequence of them; "
            f"got {implementation!r}."
        )
    refusals: list[tuple[str, str]] = []
    for name in names:
        reason = reasons[name]()
        if reason is None:
            for refused, why in refusals:
                _log_once(refused, f"{refused} can't take this call, {name} does: {why}")
            return name
        refusals.append((name, reason))
    told = " ".join(f"{name}: {why}" for name, why in refusals)
    raise NotImplementedError(f"{told} Use implementation=None or 'xla'.")


def _log_once(name: str, message: str) -> None:
    if (name, message) not in _LOGGED:
        _LOGGED.add((name, message))
        _LOGGER.info(message)
