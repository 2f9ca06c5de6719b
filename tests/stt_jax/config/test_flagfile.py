import pytest

from stt_jax.config import ModelConfig, flagfile

GROUPS = {"model": ModelConfig}


def test_numbers_in_lists_are_numbers_and_are_written_as_runs_have_them_on_disk(tmp_path):
    path = tmp_path / "run.flags"
    lines = ["--trend_half_lives_h=0.1,0.25,1,24", "--succession_half_lives_h=0.25,1"]
    path.write_text("\n".join(lines))
    model = flagfile.from_flagfile(path, GROUPS)["model"]
    assert model.trend_half_lives_h == (0.1, 0.25, 1.0, 24.0)
    assert all(type(hours) is float for hours in model.trend_half_lives_h)
    assert set(lines) <= set(flagfile.to_flagfile(model).splitlines())
    path.write_text("--trend_half_lives_h=0.1,0.250,1.0,24\n--succession_half_lives_h=.25,1.0")
    assert flagfile.from_flagfile(path, GROUPS)["model"] == model


def test_the_default_and_whole_numbers_of_a_caller_are_written_without_a_point():
    for model in (ModelConfig(), ModelConfig(trend_half_lives_h=(24,))):
        assert "--trend_half_lives_h=24" in flagfile.to_flagfile(model).splitlines()
    assert "--succession_half_lives_h=" in flagfile.to_flagfile(ModelConfig()).splitlines()
    model = flagfile.parse(GROUPS, ["", "--trend_half_lives_h="])["model"]
    assert model.trend_half_lives_h == ()


def test_what_is_no_number_in_a_list_of_numbers_is_told():
    with pytest.raises(
        ValueError, match=r"^--trend_half_lives_h=24,soon must be numbers, comma separated$"
    ):
        flagfile.parse(GROUPS, ["", "--trend_half_lives_h=24,soon"])
