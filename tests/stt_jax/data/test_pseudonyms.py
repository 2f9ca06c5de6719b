import hashlib
import stat

import pytest

from stt_jax.data.pseudonyms import check_value, open_key, pseudonym

KEY = bytes(range(32))
KEY_TEXT = KEY.hex()


def write_key(path, text=KEY_TEXT, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_pseudonym_is_the_keyed_hash_of_role_and_id():
    wanted = hashlib.blake2b("Zoë".encode(), key=KEY, digest_size=16, person=b"stt_jax user")
    assert pseudonym("Zoë", KEY, "user") == wanted.hexdigest()
    assert pseudonym("470", KEY, "user") == "08c7bd86e591957b68eaafebfe6f8e84"
    others = {
        pseudonym("470", KEY, "item"),
        pseudonym("471", KEY, "user"),
        pseudonym("470", KEY[::-1], "user"),
        check_value(KEY),
    }
    assert len(others | {pseudonym("470", KEY, "user")}) == 5


def test_a_new_key_is_its_owners_only_and_stays(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(FileNotFoundError, match="--make_key makes one"):
        open_key(path)
    key = open_key(path, make=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 32
    assert open_key(path, make=True) == open_key(path) == key
    assert open_key(tmp_path / "other", make=True) != key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    path = write_key(tmp_path / "key", mode=mode)
    with pytest.raises(ValueError, match=f"read or changed by others .mode {mode:o}") as error:
        open_key(path)
    assert KEY_TEXT not in str(error.value)


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "0x" + "00" * 31, "g" * 64, "é" * 64])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path, text):
    with pytest.raises(ValueError, match="must hold 64 hexadecimal digits") as error:
        open_key(write_key(tmp_path / "key", text))
    assert not text or text not in str(error.value)


def test_a_key_beside_the_data_is_refused(tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_key(tmp_path / "key")
    (tmp_path / "way").symlink_to(folder, target_is_directory=True)
    for path in (folder / "key", folder / "deep" / "key", tmp_path / "way" / "key"):
        with pytest.raises(ValueError, match="must not get the key"):
            open_key(path, make=True, outside=str(folder))
        assert not path.exists()
    assert open_key(tmp_path / "key", outside=str(folder)) == KEY
