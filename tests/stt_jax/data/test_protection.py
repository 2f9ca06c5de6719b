"""What --pseudonymise, --coarsen_cell and --coarsen_time_s leave of a log, and what they do not."""

import numpy as np
import pytest

from stt_jax import forget
from stt_jax.config import PrepareConfig
from stt_jax.data.preparation import prepare_log
from stt_jax.data.pseudonyms import find_user, open_ids, open_key, pseudonym
from stt_jax.data.schema import UNKNOWN_E7

ROWS = [
    ("anna-1", "home-of-anna", 1_600_000_059, "48.2082", "16.3738"),
    ("anna-1", "museum", 1_600_003_661, "48.2046", "16.3608"),
    ("anna-1", "museum", 1_600_090_000, "48.2046", "16.3608"),
    ("bert-2", "museum", 1_600_003_600, "48.2046", "16.3608"),
    ("bert-2", "cafe-x", 1_600_007_200, "", ""),
    ("bert-2", "home-of-anna", 1_600_097_200, "48.2082", "16.3738"),
]


def prepare(folder, output, *, rows=ROWS, **options):
    lines = ["who,what,when,lat,lon", *(",".join(map(str, row)) for row in rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = PrepareConfig(
        input=(str(folder / "log.csv"),),
        output=str(folder / output),
        user="who",
        item="what",
        time="when",
        latitude="lat",
        longitude="lon",
        split="leave_one_out",
        **options,
    )
    return prepare_log(config)


def hide(folder, output, kind="users_and_items", key="key", **options):
    key_file = str(folder / key)
    return prepare(folder, output, pseudonymise=kind, key_file=key_file, make_key=True, **options)


def step(log, name):
    return next(step for step in log.meta.steps if step.name.startswith(name))


def test_no_file_of_the_log_holds_an_id_or_the_key(tmp_path):
    log = hide(tmp_path, "out", write_recbole=True)
    files = [path for path in log.directory.rglob("*") if path.is_file()]
    assert len(files) > 8
    ids = {row[k].encode() for row in ROWS for k in (0, 1)}
    secrets = {*ids, (tmp_path / "key").read_bytes().strip(), str(tmp_path / "key").encode()}
    for path in files:
        assert [secret for secret in secrets if secret in path.read_bytes()] == [], path
    assert step(log, "pseudonyms: user, item").changed == {
        "2 users have pseudonyms": 6,
        "3 items have pseudonyms": 6,
    }


def test_the_same_key_gives_the_same_log_and_another_key_another(tmp_path):
    one, two = hide(tmp_path, "one"), hide(tmp_path, "two")
    for path in one.directory.iterdir():
        assert path.read_bytes() == (two.directory / path.name).read_bytes(), path.name
    other = hide(tmp_path, "three", key="other")
    assert set(other.user_ids).isdisjoint(one.user_ids)
    key = open_key(tmp_path / "key")
    assert set(one.user_ids) == {pseudonym(name, key, "user") for name in ("anna-1", "bert-2")}
    assert pseudonym("museum", key, "item") in list(one.item_ids)
    ids = open_ids(one, str(tmp_path / "key"))
    assert ids.item("museum") == ids.item(ids.item("museum")) == pseudonym("museum", key, "item")


def test_only_the_names_change(tmp_path):
    plain, hidden = prepare(tmp_path, "plain"), hide(tmp_path, "hidden", "users")
    key_file = str(tmp_path / "key")
    assert list(hidden.item_ids) == list(plain.item_ids)
    assert open_ids(hidden, key_file).item("museum") == "museum"
    with pytest.raises(ValueError, match="name the key that they were made with by --key_file"):
        open_ids(hidden, "", needed=True)
    for name in ("anna-1", "bert-2"):
        before, after = plain.user_row(name), hidden.user_row(find_user(hidden, name, key_file))
        for column in ("times", "items", "parts", "latitudes_e7"):
            events = [
                getattr(log, column)[slice(*log.user_offsets[row : row + 2])]
                for log, row in ((plain, before), (hidden, after))
            ]
            np.testing.assert_array_equal(*events)


def test_a_person_is_forgotten_by_the_raw_id_and_the_key(tmp_path, capsys):
    log = hide(tmp_path, "out")
    other = tmp_path / "other"
    open_key(other, make=True)
    command = ["forget.py", f"--data={log.directory}", f"--runs={tmp_path}", "--user=anna-1"]
    assert forget.main([*command, f"--key_file={other}"]) == 2
    assert "is not the key that" in capsys.readouterr().err
    assert forget.main(command) == 2
    assert forget.main([*command, f"--key_file={tmp_path / 'key'}"]) == 0
    assert "3 events of 1 person removed" in capsys.readouterr().out
    gone = pseudonym("anna-1", open_key(tmp_path / "key"), "user").encode()
    assert all(gone not in path.read_bytes() for path in log.directory.iterdir())
    plain = prepare(tmp_path, "plain")
    with pytest.raises(ValueError, match="has no pseudonyms; leave out --key_file"):
        find_user(plain, "anna-1", str(tmp_path / "key"))
    assert find_user(plain, "anna-1", "") == "anna-1"


def test_places_move_to_the_centres_of_their_cells(tmp_path):
    h3 = pytest.importorskip("h3", reason="h3 of the extra 'cells' is not installed")
    exact, coarse = prepare(tmp_path, "exact"), prepare(tmp_path, "coarse", coarsen_cell="8")
    for latitude, longitude, *found in zip(
        exact.latitudes_e7,
        exact.longitudes_e7,
        coarse.latitudes_e7,
        coarse.longitudes_e7,
        strict=True,
    ):
        if latitude == UNKNOWN_E7:
            assert found == [UNKNOWN_E7, UNKNOWN_E7]
        else:
            cell = h3.latlng_to_cell(latitude * 1e-7, longitude * 1e-7, 8)
            assert found == [round(degrees * 1e7) for degrees in h3.cell_to_latlng(cell)]
    assert step(coarse, "coarse places: H3 8").changed == {"moved to the centre of the cell": 5}
    known = coarse.item_latitudes_e7[coarse.item_latitudes_e7 != UNKNOWN_E7]
    assert set(known) <= set(coarse.latitudes_e7)
    blind = prepare(tmp_path, "blind", rows=[(*row[:3], "", "") for row in ROWS], coarsen_cell="8")
    assert not blind.meta.has_places


def test_times_move_back_to_the_grid(tmp_path):
    early = ("anna-1", "museum", "-1.5", "48.2", "16.3")
    exact = prepare(tmp_path, "exact", rows=[*ROWS, early])
    coarse = prepare(tmp_path, "coarse", rows=[*ROWS, early], coarsen_time_s=3600)
    np.testing.assert_array_equal(coarse.times, exact.times // 3600 * 3600)
    assert coarse.times.min() == -3600
    on_grid = sum(float(row[2]) % 3600 == 0 for row in ROWS)
    assert step(coarse, "coarse times: 3600 s").changed == {"moved back to the grid": 7 - on_grid}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pseudonymise": "users"}, "--pseudonymise and --key_file go together"),
        ({"key_file": "k"}, "--pseudonymise and --key_file go together"),
        ({"make_key": True}, "--make_key needs --key_file"),
        ({"coarsen_cell": "16"}, "--coarsen_cell=16 is no resolution"),
        ({"coarsen_time_s": -1}, "--coarsen_time_s must be 0 or more"),
        ({"coarsen_time_s": 60, "context": ("when",)}, "--context=when would store values"),
        ({"coarsen_cell": "7", "numeric": ("lat",)}, "--numeric=lat would store values"),
    ],
)
def test_contradictions_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, "out", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": ("who",)}, "--context=who would store values of the column 'who'"),
        ({"name": "what"}, "--name=what would store"),
        ({"drop_if": ("who=anna-1",)}, "--drop_if=who=anna-1 would store"),
        ({"key": "out/key"}, "must not get the key"),
    ],
)
def test_what_would_give_an_id_away_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        hide(tmp_path, "out", **options)
    assert not (tmp_path / "out").exists()
