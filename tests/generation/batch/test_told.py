"""Vectors and texts of a listing, and prompts: from there to the samples, and what the manifest keeps."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.data.prepare.vectors import store_vectors
from proav.errors import UserError, raise_from_text
from proav.generation.batch import generate
from proav.generation.batch.making import recipe_of
from proav.generation.batch.manifest import read_samples
from proav.generation.batch.plan import make_plan, manifest_row, pack, shared_values, unpack, wanted_rows
from proav.generation.given_vectors import GivenVectors
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import encode_clip
from proav.runs.checkpoint import load_checkpoint
from tests.generation.batch.test_making import maker_of
from tests.tiny import save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments

VECTORS = "stdit.vectors={caption: 3, words: [2, 2]}"
ENCODER = "generate.encoders={caption: tests.generation.batch.test_told:encode}"


def encode(texts):
    """The numbers of letters, of vowels and of words of a text."""
    return np.array(
        [[len(text), sum(letter in "aeiou" for letter in text), text.count(" ") + 1] for text in texts]
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config(VECTORS)))


def test_several_labels_of_a_listing_and_of_a_setting(checkpoint, tmp_path):
    (tmp_path / "rows.csv").write_text("label\nrain; speech\nspeech\n;\n")
    words = f"generate.listing={tmp_path / 'rows.csv'}", "generate.label=speech;rain;speech"
    with pytest.raises(UserError, match="row 3: label=';' is unknown"):
        list(wanted_rows(tiny_config(*words), checkpoint))
    (tmp_path / "rows.csv").write_text("label,seed\nrain; speech,\nspeech,\n,1\n")
    rows = wanted_rows(tiny_config(*words), checkpoint)
    assert [row["label"] for row in rows] == ["rain;speech", "speech", "speech;rain"]


def test_texts_become_vectors_and_numbers_are_taken_as_they_are(checkpoint, tmp_path):
    table = {
        "caption": ["a glass falls", None, "drum"], "words": [None, [[1.0, 2.0]], [[0.5, 0.5], [1.0, 1.0]]],
        "label": ["rain", None, "rain;speech"],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    words = ENCODER, f"generate.listing={tmp_path / 'rows.parquet'}", "generate.guidance_scale=2"
    maker, rows = maker_of(checkpoint, tmp_path / "samples", *words)
    assert maker({"batch": pack(rows)})["error"] == ""
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint.path)
    told = [
        {"label": "rain", "vectors": {"caption": [13, 3, 3]}},
        {"vectors": {"words": [[1, 2], [0, 0]]}},
        {"label": "rain;speech", "vectors": {"caption": [4, 1, 1], "words": [[0.5, 0.5], [1, 1]]}},
    ]
    made = read_samples(str(tmp_path / "samples"))
    assert [row.get("texts") for row in made] == [{"caption": "a glass falls"}, None, {"caption": "drum"}]
    assert all(row["encoders"] == {"caption": "tests.generation.batch.test_told:encode"} for row in made)
    assert len(made[1]["vectors"]["words"]) == 16
    settings = SamplingSettings(steps=3, guidance_scale=2.0)
    requests = [SampleRequest(0, index, settings=settings, **one) for index, one in enumerate(told)]
    files = [(tmp_path / "samples" / row["path"]).read_bytes() for row in made]
    assert files == [encode_clip(clip) for clip in pipeline.sample(requests)]
    vectors = GivenVectors(recipe_of(tiny_config(*words), checkpoint.config, "", "", {}).config, "")(rows)
    for found, expected in zip(vectors, told, strict=True):
        assert {name: values.tolist() for name, values in found.items()} == {
            name: np.asarray(values, float).tolist() for name, values in expected["vectors"].items()
        }


PROMPTS = "generate.prompts=['a glass falls', 'drum, heard']"
TOLD = [{"texts": {"caption": text}} for text in ("a glass falls", "drum, heard")]


def test_prompts_take_turns_without_labels_unless_one_is_named(checkpoint, capsys):
    words = ENCODER, PROMPTS, "generate.num_samples=3", "seed=7"
    rows = list(wanted_rows(tiny_config(*words), checkpoint))
    own = [{"index": index, "seed": 7, "label": None} for index in range(3)]
    assert rows == [own[0] | TOLD[0], own[1] | TOLD[1], own[2] | TOLD[0]]
    named = list(wanted_rows(tiny_config(*words, "generate.label=rain"), checkpoint))
    assert named == [row | {"label": "rain"} for row in rows]
    assert capsys.readouterr().out == ""
    list(wanted_rows(tiny_config(*words, "generate.num_samples=1"), checkpoint))
    said = "generate: the last 1 of 2 prompts have no turn: generate.num_samples=1\n"
    assert capsys.readouterr().out == said


def test_samples_of_prompts_are_those_of_a_listing_with_the_same_texts(checkpoint, tmp_path):
    (tmp_path / "rows.csv").write_text('caption\na glass falls\n"drum, heard"\n')
    ways = {
        "prompts": [PROMPTS, "generate.num_samples=2"],
        "listing": [f"generate.listing={tmp_path / 'rows.csv'}"],
        "none": ["generate.num_samples=2"],
    }
    found = {}
    for name, words in ways.items():
        maker, rows = maker_of(checkpoint, tmp_path / name, ENCODER, "generate.guidance_scale=2", *words)
        assert maker({"batch": pack(rows)})["error"] == ""
        made = read_samples(str(tmp_path / name))
        found[name] = made, [(tmp_path / name / row["path"]).read_bytes() for row in made]
    assert found["prompts"] == found["listing"]
    assert not set(found["prompts"][1]) & set(found["none"][1])
    assert [row["texts"] for row in found["prompts"][0]] == [told["texts"] for told in TOLD]


def test_a_prompt_is_a_text_for_the_first_encoder_as_in_the_server(checkpoint):
    first = "generate.encoders={words: a.b:c, caption: a.b:c}", PROMPTS, "generate.num_samples=1"
    (row,) = wanted_rows(tiny_config(*first), checkpoint)
    assert row["texts"] == {"words": "a glass falls"}


def test_a_model_that_takes_vectors_and_gets_none_says_so(checkpoint, tmp_path, capsys):
    labels = [row["label"] for row in wanted_rows(tiny_config(ENCODER), checkpoint)]
    said = capsys.readouterr().out
    assert labels == ["rain", "speech", "rain"] and said.count("\n") == 1
    assert "NO VECTORS: the model takes caption, words, and these clips are made without." in said
    assert "generate.prompts=[TEXT,...], or generate.listing=FILE" in said
    plain = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config()))
    list(wanted_rows(tiny_config(), plain))
    assert capsys.readouterr().out == ""


def test_a_listing_that_gives_no_vectors_says_so(checkpoint, tmp_path, capsys):
    listing = tmp_path / "rows.csv"
    said = f"generate: NO VECTORS: the model takes caption, words, and no row of generate.listing={listing} "
    for text, is_said in (("label,caption\nrain,\n", 1), ("label\nrain\n", 1), ("caption\n\na drum\n", 0)):
        listing.write_text(text)
        list(wanted_rows(tiny_config(ENCODER, f"generate.listing={listing}"), checkpoint))
        assert capsys.readouterr().out.count(said) == is_said
    table = {"label": ["rain", None], "words": [None, [[1.0, 2.0]]]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    list(wanted_rows(tiny_config(f"generate.listing={tmp_path / 'rows.parquet'}"), checkpoint))
    assert capsys.readouterr().out == ""


def test_columns_that_a_listing_of_data_leaves_unused_are_still_conditions(checkpoint, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("caption,label,fps\na drum,rain,5\n")
    words = ENCODER, f"generate.listing={tmp_path / 'rows.csv'}", "data.other_columns=[caption,label,fps]"
    (row,) = wanted_rows(tiny_config(*words), checkpoint)
    assert row["label"] == "rain" and row["texts"] == {"caption": "a drum"}
    assert capsys.readouterr().out.endswith(f"columns of {tmp_path / 'rows.csv'} that are not used: fps\n")


def test_words_in_brackets_and_any_prompt_are_texts(checkpoint, tmp_path):
    (tmp_path / "rows.csv").write_text('caption\n[applause]\n"[rain], 3 drums"\n1984\n')
    rows = wanted_rows(tiny_config(ENCODER, f"generate.listing={tmp_path / 'rows.csv'}"), checkpoint)
    told = [row["texts"]["caption"] for row in rows]
    assert told == ["[applause]", "[rain], 3 drums", "1984"]
    words = ENCODER, "generate.prompts=[' nan ', '[1, 2]']", "generate.num_samples=2"
    rows = wanted_rows(tiny_config(*words), checkpoint)
    assert [row["texts"]["caption"] for row in rows] == ["nan", "[1, 2]"]


def test_a_wrong_encoder_leaves_a_finished_job_as_it_is(checkpoint, tmp_path):
    words = f"run_dir={tmp_path}", f"generate.checkpoint={checkpoint.path}", PROMPTS, "generate.num_samples=2"
    config, folder = tiny_config(*words, ENCODER), tmp_path / "samples"
    maker, rows = maker_of(checkpoint, folder, *words, ENCODER)
    assert maker({"batch": pack(rows)})["error"] == ""
    assert generate(config).num_samples == 2
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    for name, said in (
        ("tests.generation.batch.test_told:encod", "test_told has no function encod; expected package.mod"),
        ("test.generation.no_such:encode", "No module named 'test.generation'"),
    ):
        with pytest.raises(UserError, match=f"^generate.encoders: caption={name}: .*{said}"):
            generate(tiny_config(*words, f"generate.encoders={{caption: {name}}}"))
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_an_encoder_that_an_actor_cannot_find_is_the_answer_to_each_batch(checkpoint, tmp_path):
    wrong = "generate.encoders={caption: tests.generation.batch.test_told:encod}"
    maker, rows = maker_of(checkpoint, tmp_path, wrong, PROMPTS)
    done = maker({"batch": pack(rows)})
    with pytest.raises(UserError, match="^generate.encoders: caption=.* has no function encod; expected"):
        raise_from_text(done["error"])
    assert done["batch"] == pack(rows) and done["arrays"] == b"" and maker(done) == done
    assert not list(tmp_path.iterdir())


def test_a_job_with_prompts_is_done_if_its_samples_are_there(checkpoint, tmp_path):
    def plan(*words: str):
        config = tiny_config("generate.num_samples=4", *words)
        shared = shared_values(config, checkpoint)
        return make_plan(str(tmp_path), wanted_rows(config, checkpoint), shared, 4), shared

    first, shared = plan(ENCODER, PROMPTS)
    rows = [manifest_row(row, shared) for row in unpack(first.batches[0])]
    (tmp_path / "000000").mkdir()
    for row in rows:
        (tmp_path / row["path"]).touch()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    other = "generate.prompts=['a glass falls', 'a horn']"
    for words, num_done in (([PROMPTS], 4), ([other], 2), ([], 0), ([PROMPTS, "generate.label=rain"], 0)):
        (tmp_path / "manifest.jsonl").write_text(lines)
        assert plan(ENCODER, *words)[0].num_done == num_done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([PROMPTS], "prompts=.'a glass falls', ....: nothing turns .* generate.encoders={caption: package"),
        ([PROMPTS, ENCODER, "generate.listing=rows.csv"], "rows.csv and 2 .* write generate.prompts=.. b"),
        ([ENCODER, "generate.prompts=['drum', ' ']"], "generate.prompts holds an empty text; expected"),
        ([ENCODER, "generate.prompts=drum"], "generate.prompts='drum': input should be a valid tuple"),
        ([ENCODER, PROMPTS, "generate.label=thunder"], "expected one of: rain, speech"),
    ],
)  # fmt: skip
def test_mistakes_in_prompts_are_reported(checkpoint, words, said):
    with pytest.raises(UserError, match=said):
        list(wanted_rows(tiny_config(*words), checkpoint))


def test_a_model_without_vectors_takes_no_prompts(tmp_path):
    plain = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config()))
    with pytest.raises(UserError, match="takes no vectors, so no texts; .* Write generate.prompts="):
        list(wanted_rows(tiny_config(PROMPTS), plain))


def test_other_texts_vectors_or_encoders_are_other_samples(checkpoint, tmp_path):
    listing = tmp_path / "rows.csv"

    def plan(text: str, *words: str):
        listing.write_text(text)
        config = tiny_config(f"generate.listing={listing}", *words)
        return make_plan(str(tmp_path), wanted_rows(config, checkpoint), shared_values(config, checkpoint), 4)

    first = unpack(plan("caption,seed\na glass,1\n,2\n", ENCODER).batches[0])
    config = tiny_config(ENCODER)
    rows = [manifest_row(row, shared_values(config, checkpoint)) for row in first]
    (tmp_path / "000000").mkdir()
    for row in rows:
        (tmp_path / row["path"]).touch()
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plan("caption,seed\na glass,1\n,2\n", ENCODER).num_done == 2
    assert plan("caption,seed\na drum,1\n,2\n", ENCODER).num_done == 1
    assert plan("seed\n1\n2\n", ENCODER).num_done == 1


def test_windows_of_the_runs_data_bring_their_labels_and_vectors(checkpoint, tmp_path):
    config = tiny_config(
        f"run_dir={tmp_path}", "generate.task=a2v", "evaluate.split=train", "generate.num_samples=6", VECTORS
    )
    write_segments(config)
    data = {
        "caption": "tests.data.prepare.test_vectors:numbers",
        "words": "tests.data.prepare.test_vectors:pairs",
    }
    config = config.model_copy(update={"data": config.data.model_copy(update={"vectors": data})})
    store_vectors(config, f"{tmp_path}/data")
    rows = list(wanted_rows(config, checkpoint))
    recipe = recipe_of(config, checkpoint.config, checkpoint.path, "", {})
    told = GivenVectors(recipe.config, recipe.data_folder)(rows)
    assert len(told) == 6 and all(values["words"].any() for values in told)
    assert {row["label"] for row in rows} == {"rain", "speech"}
    # a prompt takes the place of the window's vector of that name, and of its labels
    prompts = {"prompts": ("a glass falls", "drum"), "encoders": tiny_config(ENCODER).generate.encoders}
    config = config.model_copy(update={"generate": config.generate.model_copy(update=prompts)})
    prompted = list(wanted_rows(config, checkpoint))
    assert [row["given"] for row in prompted] == [row["given"] for row in rows]
    assert {row["label"] for row in prompted} == {None}
    recipe = recipe_of(config, checkpoint.config, checkpoint.path, "", {})
    for place, (values, before) in enumerate(
        zip(GivenVectors(recipe.config, recipe.data_folder)(prompted), told, strict=True)
    ):
        assert values["caption"].tolist() == encode([prompts["prompts"][place % 2]])[0].tolist()
        assert np.array_equal(values["words"], before["words"])


@pytest.mark.parametrize(
    ("text", "word", "said"),
    [
        (
            "caption\nNaN\n",
            ENCODER,
            "row 1: caption='NaN' is what programs write .* expected nothing or a text",
        ),
        ("caption\n<NA>\n", "seed=0", "row 1: caption='<NA>' is what programs write for a missing value"),
        (
            'caption\ndrum\n"[0.1, 2e-3, .3]"\n',
            ENCODER,
            "row 2: caption=.*is a text, not a vec.* need Parquet",
        ),
        ("words\n[[1. 2.] [3. nan]]\n", "seed=0", "row 1: words='.*numbers need Parquet, with a list"),
        ("caption\n[0. 1. ... 9.]\n", ENCODER, "numbers need Parquet"),
        ("captoin\na glass\n", ENCODER, "know: captoin .did you mean caption[?].; expected .*; rename them$"),
        (
            "caption\na glass\n",
            "seed=0",
            "row 1: caption='a glass' is a text; .*generate.encoders={caption: ",
        ),
        ("caption\na glass\n", "generate.encoders={face: a.b:c}", "takes no vectors 'face'"),
        (
            "face\na glass\n",
            ENCODER,
            "does not know: face; the model takes the vectors caption, words .stdit.vectors.; expected",
        ),
    ],
)
def test_columns_that_do_not_fit_are_reported(checkpoint, tmp_path, text, word, said):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        list(wanted_rows(tiny_config(word, f"generate.listing={tmp_path / 'rows.csv'}"), checkpoint))


def test_vectors_of_a_segment_that_is_gone_are_reported(checkpoint, tmp_path):
    config = tiny_config(f"run_dir={tmp_path}", VECTORS)
    write_segments(config)
    recipe = recipe_of(config, checkpoint.config, checkpoint.path, "", {})
    with pytest.raises(UserError, match="has no segment nowhere any more; run generate.py again"):
        GivenVectors(recipe.config, recipe.data_folder)([{"given": {"segment_id": "nowhere"}}])
