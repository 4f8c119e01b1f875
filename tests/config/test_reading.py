"""Configuration: what is read, what is refused, and what the refusal says."""

from pathlib import Path

import pytest

from proav.config import Config
from proav.config.reading import config_from_dict, config_to_dict, describe_settings, load_config
from proav.errors import ConfigError

SHIPPED = sorted(Path(__file__).parents[2].glob("configs/**/*.yaml"))


def write(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_a_round_trip(path):
    config = load_config(str(path))
    assert config_from_dict(config_to_dict(config)) == config
    assert path.read_text().startswith("#") and "command" in path.read_text().split("name:")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mdsa.witdh=96"], "unknown key mdsa.witdh; did you mean mdsa.width?"),
        (["train.batch=3"], "did you mean mdsa.train.batch_size?"),
        (["trian.batch_size=8"], "unknown key trian.batch_size; did you mean train.batch_size?"),
        (["trian.batch_sise=8"], "did you mean train.batch_size?"),
        (["trian.of_nobody=8"], "did you mean train?"),
        (["mdas.trian.num_clip=8"], "did you mean mdsa.train.num_clips?"),
        (["mdsa.group_cros={num_groups: 2}"], "did you mean mdsa.group_cross.num_groups?"),
        (["evalute={real: a, fake: b}"], "unknown key evalute; did you mean evaluate?"),
        (["clip.fps.per_second=3"], "clip.fps"),
        (["mdsa.batch_size=4"], "did you mean mdsa.train.batch_size?"),
        (["data.labels=[a,b,a]"], "data.labels names 'a' 2 times"),
        (["data.labels=[Caf\u00e9,Cafe\u0301]"], "data.labels names 'Caf\u00e9' 2 times"),
        (["colour=red"], "unknown key colour"),
        (["mdsa.train.batch_size=0"], "mdsa.train.batch_size=0"),
        (["mdsa.train.num_workers=abc"], "mdsa.train.num_workers='abc': input should be a valid integer"),
        (["mdsa.train.num_workers=[1,x]"], "mdsa.train.num_workers.1='x': input should be a valid integer"),
        (["mdsa.train.num_workers=[1,2,3]"], "integer; or tuple should have at most 2 items"),
        (["mdsa.train.num_workers=abc"], "tuple. mdsa.train.num_workers: Training processes"),
        (["mdsa.train.use_gpu=maybe"], "mdsa.train.use_gpu='maybe': input should be a valid boolean"),
        (["mdsa.train.use_gpu=maybe"], "; or input should be 'auto'. mdsa.train.use_gpu: auto: a GPU"),
        (["mdsa.train.betas=[0.9,x]"], "mdsa.train.betas.1='x': input should be a valid number"),
        (["stdit.vectors={caption: x}"], "stdit.vectors.caption='x': input should be a valid integer"),
        (["diffusion.task_weights={joint: x}"], "diffusion.task_weights.joint='x': input should be"),
        (["stage=vae"], "'mdsa', 'stdit' or 'distill'"),
        (["mdsa=3"], "mdsa=3 is a section"),
        (["seed"], "expected section.key=value"),
        (["clip.fps=7"], "clip.sample_rate=16000 is not a whole number of samples per frame at clip.fps=7"),
        (["mel.hop=99"], "such as 100"),
        (["mdsa.multi_scale.scales=[1,3]"], "[3] do not divide clip.num_frames=16"),
        (["mdsa.group_cross.num_groups=5"], "mdsa.group_cross.num_groups=5 does not divide"),
        (["mdsa.bi_block.block_size=5"], "mdsa.bi_block.block_size=5"),
        (["mdsa.plane_size=8"], "planes keep every frame"),
        (["mdsa.plane_size=32"], "write mdsa.audio_input=tiled"),
        (["stdit.width=64"], "write stdit.size=custom"),
        (
            ["stage=mdsa", "train.batch_size=6", "train.num_workers=[2,4]"],
            "write train.num_workers=[2,3] or train.batch_size=12 (a multiple of 12)",
        ),
        (
            ["stage=mdsa", "train.batch_size=24", "train.num_workers=5"],
            "write train.num_workers=4 or train.num_workers=6 or train.batch_size=20",
        ),
        (
            ["stage=mdsa", "train.batch_size=24", "train.num_workers=[5,7]"],
            "write train.num_workers=6 or train.batch_size=210",
        ),
        (
            ["stage=mdsa", "train.batch_size=7", "train.accumulation_steps=2"],
            "write train.batch_size=6 (a multiple of 2) or train.batch_size=8",
        ),
        (
            ["stage=mdsa", "train.batch_size=64", "train.accumulation_steps=3", "train.num_workers=[1,16]"],
            "train.batch_size=64 does not split into 3 accumulation steps; write train.accumulation_steps=1",
        ),
        (
            ["stage=mdsa", "train.batch_size=64", "train.accumulation_steps=3", "train.num_workers=[1,2]"],
            "=66 (a multiple of 6) or train.accumulation_steps=2 or train.accumulation_steps=4",
        ),
        (
            ["stage=mdsa", "train.batch_size=64", "train.num_workers=[1,10000000]"],
            "write train.num_workers=[1,2]",
        ),
        (
            ["stage=mdsa", "train.batch_size=64", "train.num_workers=[33,63]"],
            "write train.num_workers=32 or train.num_workers=64",
        ),
        (["train.loader=actors"], "train.loader_workers=2"),
        (["data.segment_seconds=1"], "expected at least 1.6"),
        (["mel.max_hz=9000"], "8000.0 (half of clip.sample_rate)"),
        (["diffusion.task_weights={joint: 0}"], "all zero"),
        (["stdit.train.learning_rate=.nan"], "stdit.train.learning_rate"),
        (["stdit.train.optimizer=lion"], "stdit.train.optimizer"),
        (["stdit.train.decay_fraction=1.5"], "stdit.train.decay_fraction"),
        (["stdit.train.muon_momentum=1"], "stdit.train.muon_momentum"),
        (["a.b={c"], "cannot read the override"),
    ],
)
def test_a_wrong_setting_is_reported_with_its_key(words, said):
    with pytest.raises(ConfigError) as error:
        load_config(None, words)
    assert said in str(error.value)


def test_labels_are_kept_in_one_form_and_may_be_numbers():
    words = ["data.labels=[Cafe\u0301,0,dog]", "generate.label=Cafe\u0301", "data.sources=[Cafe\u0301]"]
    config = load_config(None, words)
    assert config.data.labels == ("Caf\u00e9", "0", "dog") and config.generate.label == "Caf\u00e9"
    assert config.data.sources == ("Cafe\u0301",)  # paths keep their bytes
    assert load_config(None, ["generate.label=3"]).generate.label == "3"


def test_train_means_the_chosen_stage():
    both = load_config(None, ["train.batch_size=48"])
    assert (both.mdsa.train.batch_size, both.stdit.train.batch_size) == (48, 48)
    one = load_config(None, ["train.batch_size=48", "stage=mdsa"])
    assert (one.mdsa.train.batch_size, one.stdit.train.batch_size) == (48, Config().stdit.train.batch_size)
    whole = load_config(None, ["train={batch_size: 48}"])
    assert (whole.mdsa.train.batch_size, whole.stdit.train.batch_size) == (48, 48)


def test_overrides_win_over_the_file_and_leave_its_neighbours(tmp_path):
    path = write(tmp_path, "name: mine\nmdsa:\n  width: 96\n  train: {batch_size: 12}\n")
    config = load_config(path, ["mdsa.train.num_clips=1200"])
    assert (config.mdsa.width, config.mdsa.train.batch_size, config.mdsa.train.num_clips) == (96, 12, 1200)
    assert config.mdsa.train.betas == Config().mdsa.train.betas
    assert config.run_folder == "runs/mine"


def test_a_train_section_of_the_file_stands_below_what_is_more_specific(tmp_path):
    path = write(
        tmp_path,
        "train: {batch_size: 12, num_clips: 2400, warmup_clips: 0}\nmdsa:\n  train: {batch_size: 24}\n",
    )
    config = load_config(path, ["train.num_clips=4800"])
    assert (config.mdsa.train.batch_size, config.stdit.train.batch_size) == (24, 12)
    assert (config.mdsa.train.num_clips, config.stdit.train.num_clips, config.stdit.train.warmup_clips) == (
        4800,
        4800,
        0,
    )


def test_a_file_laid_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "name: below\nclip: {height: 64, width: 64}\n"
        "mdsa:\n  width: 96\n  train: {batch_size: 12, num_clips: 2400}\n"
    )
    (tmp_path / "sweeps").mkdir()
    top = tmp_path / "sweeps" / "top.yaml"
    top.write_text(
        "base: ../base.yaml\nname: above\nclip: {height: 32}\ntrain: {num_clips: 1200}\n"
        "diffusion:\n  task_weights: {joint: 1.0}\n"
    )
    config = load_config(str(top), ["clip.width=256", "mel.num_bins=32"])
    assert (config.name, config.clip.height, config.clip.width, config.mdsa.width) == ("above", 32, 256, 96)
    assert (config.mdsa.train.batch_size, config.mdsa.train.num_clips, config.stdit.train.num_clips) == (
        12,
        1200,
        1200,
    )
    assert config.diffusion.task_weights == {"joint": 1.0}
    top.write_text("base: ../absent.yaml\n")
    with pytest.raises(ConfigError, match="there is no file .*absent.yaml"):
        load_config(str(top))
    top.write_text("base: top.yaml\n")
    with pytest.raises(ConfigError, match="in a circle"):
        load_config(str(top))


def test_a_reference_is_to_the_value_after_all_files_and_words(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "seed: ${evaluate.num_resamples}\nclip: {height: 64}\nmel: {num_bins: 32}\n"
    )
    path = write(
        tmp_path,
        "base: ${oc.env:BASE_OF_TEST,base}.yaml\nevaluate: {num_resamples: 80}\n"
        "clip: {width: '${clip.height}'}\n"
        "train: {num_clips: 2400, warmup_clips: '${.num_clips}'}\n"
        "encode: {batch_size: '${train.batch_size}'}\nstdit: {train: {batch_size: 12}}\n",
    )
    config = load_config(path, ["evaluate.num_resamples=50", "train.batch_size=24", "train.num_clips=4800"])
    assert (config.seed, config.clip.width, config.encode.batch_size) == (50, 64, 24)
    assert config.mdsa.train.warmup_clips == config.stdit.train.warmup_clips == 4800
    assert load_config(path, ["stage=stdit"]).encode.batch_size == 12
    assert load_config(None, ["clip.height=128", "clip.width=${clip.height}"]).clip.width == 128


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            "seed: ${evaluate.num_resample}",
            [],
            r"^seed \(in .*\) names .*did you mean \$\{evaluate.num_resamples",
        ),
        ("seed: ${tune.seed}", [], "no override has this key; give tune.seed a value"),
        ("seed: ${oc.env:NOT_SET_ANYWHERE}", [], "seed .*stands for nothing: .*NOT_SET_ANYWHERE"),
        ("seed: ${tune.seed}\ntune: {seed: '${seed}'}", [], "stands for nothing: Recursive"),
        ("stage: ${tune.stage}", [], "write one of mdsa, stdit, distill"),
        (
            "stdit: {train: '${mdsa.train}'}",
            ["stdit.train.seed=1"],
            "^stdit.train=.* another section as a whole",
        ),
    ],
)
def test_a_reference_that_stands_for_nothing_is_reported(tmp_path, text, words, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text), words)


def test_a_section_that_is_another_is_not_changed_in_part(tmp_path):
    (tmp_path / "base.yaml").write_text("mdsa: {train: {num_clips: 2400}}\nstdit: {train: '${mdsa.train}'}\n")
    with pytest.raises(ConfigError, match="^stdit.train=.* write the keys of stdit.train one by one"):
        load_config(write(tmp_path, "base: base.yaml\nstdit: {train: {num_clips: 1200}}\n"))


def test_lists_and_strings_with_odd_characters_come_through():
    config = load_config(None, ["data.sources=[/a b/c,s3://bucket/x]", "data.labels=[rain,fire]"])
    assert config.data.sources == ("/a b/c", "s3://bucket/x") and config.data.labels == ("rain", "fire")


def test_a_file_that_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(str(tmp_path / "absent.yaml"))
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(write(tmp_path, "clip: [1, 2\nmel: }"))
    with pytest.raises(ConfigError, match="unknown key clip.frames in .*run.yaml"):
        load_config(write(tmp_path, "clip: {frames: 3}"))
    with pytest.raises(ConfigError, match="run.yaml holds int, expected sections of keys"):
        load_config(write(tmp_path, "5"))
    (tmp_path / "latin.yaml").write_bytes("name: München".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.yaml is not text in UTF-8"):
        load_config(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:", "train=None is a section, expected keys below it, such as train.batch_size"),
        ("mdsa: 5\ntrain: {batch_size: 8}", "mdsa=5 is a section"),
        ("mdsa: {train: 5}\ntrain: {batch_size: 8}", "mdsa.train=5 is a section"),
    ],
)
def test_a_value_in_place_of_a_section_is_reported(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text))


def test_every_setting_is_documented():
    undocumented = [key for key, _, text in describe_settings() if len(text) < 3]
    assert not undocumented


def test_a_module_that_is_switched_off_needs_no_scales():
    with pytest.raises(ConfigError, match=r"scales=\[\] names no scale; .*mdsa.multi_scale.enabled=false"):
        load_config(None, ["mdsa.multi_scale.scales=[]"])
    off = load_config(None, ["mdsa.multi_scale.scales=[]", "mdsa.multi_scale.enabled=false"])
    assert off.mdsa.multi_scale.scales == ()
