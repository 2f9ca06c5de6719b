"""Pseudonyms: keyed hashes in the place of ids, and the file with the key.

A pseudonym is BLAKE2b of the id under a key of 256 bits, cut to 128 bits. The same id and key give
the same pseudonym in every log; without the key an id can neither be read from its pseudonym nor be
tried out against it. The key lies in a file of its own, never with the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
import stat

from stt_jax.data.prepared_log import PreparedLog

# What --pseudonymise says -> the columns that it replaces.
PSEUDONYMISED = {"": (), "users": ("user",), "users_and_items": ("user", "item")}
# Among the statistics of a log with pseudonyms: how to know its key, and what --pseudonymise said.
KEY_CHECK = "pseudonym_key_check"
HIDDEN_IDS = "pseudonymised"
_KEY_TEXT = re.compile(r"[0-9a-f]{64}\n?")
_NUM_BYTES = 16


def open_key(path: str | os.PathLike, *, make: bool = False, outside: str = "") -> bytes:
    """The 32 bytes of a key file: 64 hexadecimal digits.

    Args:
      path: the file.
      make: make a new one, readable by its owner only, if there is none.
      outside: a folder that the file must not be in.

    Raises:
      ValueError: the file is in that folder, others may read it, or it holds no key.
      OSError: it is missing, or cannot be read or made.
    """
    path = pathlib.Path(path)
    if outside and path.resolve().is_relative_to(pathlib.Path(outside).resolve()):
        raise ValueError(
            f"--key_file={path} is inside {outside}: whoever gets the data must not get the key; "
            "name a file elsewhere"
        )
    if make and not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    if not path.is_file():
        raise FileNotFoundError(f"--key_file={path}: no such file; prepare --make_key makes one")
    with path.open(encoding="ascii", errors="replace") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(66)
    if mode & 0o077:
        raise ValueError(
            f"--key_file={path} can be read or changed by others (mode {mode:o}); "
            f"chmod 600 {path}, and take another key if somebody may have read it"
        )
    if not _KEY_TEXT.fullmatch(text):
        raise ValueError(f"--key_file={path} is no key: it must hold 64 hexadecimal digits")
    return bytes.fromhex(text.strip())


def pseudonym(text: str, key: bytes, role: str) -> str:
    """What stands for an id: 32 hexadecimal digits.

    Args:
      text: the id as the raw log writes it.
      key: 32 bytes.
      role: "user" or "item"; the same text has another pseudonym in each.
    """
    person = f"stt_jax {role}".encode()
    return hashlib.blake2b(
        text.encode(), key=key, digest_size=_NUM_BYTES, person=person
    ).hexdigest()


def check_value(key: bytes) -> str:
    """What a log stores of its key, to know it again; it tells nothing of the key."""
    return pseudonym("", key, "check")


def find_user(log: PreparedLog, user_id: str, key_file: str) -> str:
    """The id in `log` of the person whom the raw log calls `user_id`.

    Args:
      log: with pseudonyms or without.
      user_id: as in the raw log; without a key file, as in `log`.
      key_file: as --key_file; empty: none.

    Raises:
      ValueError, OSError: as `open_key`; the log has no pseudonyms, or they were made by another
        key.
    """
    return open_ids(log, key_file).user(user_id) if user_id else ""


@dataclasses.dataclass(frozen=True)
class Ids:
    """Ids as callers write them -> ids as a prepared log holds them; the same without a key."""

    key: bytes | None = None
    hides_items: bool = False
    log: PreparedLog | None = None

    def user(self, text: str) -> str:
        """The id of a person; "", nobody, stays."""
        return pseudonym(text, self.key, "user") if self.key and text else text

    def item(self, text: str) -> str:
        """The id of an item; what is one of the log's, as lists of items show it, stays."""
        if self.key is None or self.log is None or not self.hides_items or self.log.has_item(text):
            return text
        return pseudonym(text, self.key, "item")


def open_ids(log: PreparedLog, key_file: str, *, needed: bool = False) -> Ids:
    """How ids of the raw log are found in a prepared one.

    Args:
      log: with pseudonyms or without.
      key_file: as --key_file; empty: ids are taken as they are.
      needed: refuse a log with pseudonyms without its key.

    Raises:
      ValueError, OSError: as `find_user`; or the key is needed.
    """
    if not key_file:
        if needed and KEY_CHECK in log.meta.statistics:
            raise ValueError(
                f"{log.directory} holds pseudonyms: name the key that they were made with by "
                "--key_file, so that no id is kept as it comes"
            )
        return Ids()
    key = open_key(key_file)
    made_by = log.meta.statistics.get(KEY_CHECK)
    if made_by is None:
        raise ValueError(f"{log.directory} has no pseudonyms; leave out --key_file")
    if made_by != check_value(key):
        raise ValueError(
            f"--key_file={key_file} is not the key that {log.directory} was prepared with"
        )
    return Ids(key, hides_items(log), log)


def hides_items(log: PreparedLog) -> bool:
    """Whether items have pseudonyms in a log, and not people alone or nobody."""
    return "item" in PSEUDONYMISED[log.meta.statistics.get(HIDDEN_IDS, "")]
