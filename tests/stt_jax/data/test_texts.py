import pyarrow as pa
import pytest

from stt_jax.data.texts import Texts, find_sorted, near_ids


def test_a_sequence_of_texts_behaves_like_a_list():
    words = ["a", "", "ünder", "z"]
    for texts in (Texts(words), Texts(pa.array(words))):
        assert len(texts) == 4
        assert list(texts) == words
        assert texts[2] == "ünder"
        assert texts[-1] == "z"
        assert texts[1:3] == ["", "ünder"]
        assert texts.index("z") == 3
        assert "ünder" in texts
        with pytest.raises(IndexError):
            texts[4]


def test_order_is_that_of_the_bytes():
    ids = sorted(["10", "9", "Z", "a", "é", "\U0001f600", "\uffee", ""], key=str.encode)
    texts = Texts(ids)
    for row, text in enumerate(ids):
        assert find_sorted(texts, text, 0, len(ids)) == row
    assert find_sorted(texts, "9a", 0, len(ids)) == ids.index("9") + 1
    assert find_sorted(texts, "zzz", 1, 3) == 3


def test_near_ids_look_alike():
    ids = [str(i) for i in range(100, 400)]
    assert "250" in near_ids(ids, "25O", 150).split(", ")
    assert near_ids([], "x", 0) == "none"
