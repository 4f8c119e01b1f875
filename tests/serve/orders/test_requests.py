"""Requests: what is filled in, and what is refused with the field's name."""

import dataclasses

import pytest

from proav.errors import UserError
from proav.runs.checkpoint import load_checkpoint
from proav.serve.front.api_error import ApiError, shown
from proav.serve.on_ray.application import StartError, build
from proav.serve.orders.model_card import ModelCard
from proav.serve.orders.requests import check_request, parse_request
from proav.serve.settings import ServeSettings
from proav.vectors import of_text
from tests.tiny import save_tiny_stdit, tiny_config


@pytest.fixture(scope="module")
def card(tiny_checkpoint):
    return ModelCard.of(load_checkpoint(tiny_checkpoint, kind="stdit"), ServeSettings(max_steps=50))


@pytest.fixture(scope="module")
def masked_card(masked_checkpoint):
    checkpoint = load_checkpoint(masked_checkpoint, kind="stdit")
    return ModelCard.of(checkpoint, ServeSettings(max_windows=5))


def order_of(card, fields, has_reference=False):
    return check_request(parse_request(fields), card, has_reference=has_reference)


def test_nothing_given_gives_the_models_defaults(card):
    order = order_of(card, {})
    assert (order.label, order.task, order.steps, order.guidance_scale) == (None, "joint", 3, 1.5)
    assert order.audio_guidance_scale is None
    assert (order.solver, order.schedule_shift, order.guidance_interval) == ("euler", 1.0, (0.0, 1.0))
    assert 0 <= order.seed < 2**31 and len({order_of(card, {}).seed for _ in range(20)}) > 1


def test_null_is_as_not_given(card):
    names = "steps", "solver", "schedule_shift", "guidance_scale", "audio_guidance_scale", "guidance_interval"
    assert order_of(card, {"seed": 1, **dict.fromkeys(names)}) == order_of(card, {"seed": 1})
    with pytest.raises(ApiError, match="guidance_interval="):
        order_of(card, {"guidance_interval": [None, 1]})


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " Rain "},
        {"label": "RAIN"},
        {"prompt": "rain", "label": "Rain"},
        {"prompt": "", "label": "rain"},
    ],
)
def test_prompt_and_label_name_a_label_in_any_case(card, fields):
    assert order_of(card, fields).label == "rain"


def test_several_labels_stand_in_prompt_or_label(card):
    assert order_of(card, {"prompt": "Rain; speech"}).label == "rain;speech"
    assert order_of(card, {"label": "speech;RAIN;speech", "prompt": "Speech;rain"}).label == "speech;rain"
    with pytest.raises(ApiError, match="'rain;thunder' is no label .* expected one of rain, speech"):
        order_of(card, {"label": "rain;thunder"})


def test_vectors_are_numbers_or_texts_by_their_names(card):
    told = dataclasses.replace(card, vectors={"caption": (2,), "words": (3, 2)}, encoders=("caption",))
    order = order_of(told, {"vectors": {"caption": "a glass", "words": [[1, 2], [3, 4]]}, "label": "rain"})
    assert order.texts == {"caption": "a glass"} and order.label == "rain"
    assert of_text(order.vectors["words"], (3, 2)).tolist() == [[1, 2], [3, 4], [0, 0]]
    by_form = order_of(told, {"vectors": '{"caption": [0.5, 1]}'})
    assert of_text(by_form.vectors["caption"], (2,)).tolist() == [0.5, 1] and by_form.texts == {}
    prompted = order_of(told, {"prompt": "A glass falls", "label": "rain"})
    assert (prompted.texts, prompted.label) == ({"caption": "A glass falls"}, "rain")
    assert order_of(told, {"prompt": "Rain"}).texts == order_of(told, {}).texts == {}


@pytest.mark.parametrize("given", [[0.5, 1], "B"])
def test_a_prompt_and_vectors_for_the_same_condition_are_refused(card, given):
    told = dataclasses.replace(card, vectors={"caption": (2,), "face": (2,)}, encoders=("caption",))
    with pytest.raises(ApiError) as refused:
        order_of(told, {"prompt": "A", "vectors": {"caption": given}})
    said = f"prompt='A' and vectors={{'caption': {given!r}}} disagree; the prompt is a text for caption here"
    assert refused.value.status == 400 and refused.value.message.startswith(said)
    same = order_of(told, {"prompt": " A", "vectors": {"caption": "A", "face": [1, 2]}})
    assert same.texts == {"caption": "A"} and same.vectors.keys() == {"face"}
    assert order_of(told, {"prompt": "Rain", "vectors": {"caption": "B"}}).texts == {"caption": "B"}


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({"face": [1.0]}, "vectors: the model takes no vectors 'face'; expected some of: caption"),
        ({"caption": [1.0]}, r"vectors: caption has the shape \[1\]; the model takes one vector of 2"),
        ({"caption": ["x", "y"]}, "vectors: caption is no array of numbers"),
        ({"caption": "a glass"}, "vectors: caption is a text, which this server does not encode"),
        ("caption", "expected JSON, such as"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(card, vectors, said):
    with pytest.raises(ApiError, match=said) as refused:
        order_of(dataclasses.replace(card, vectors={"caption": (2,)}), {"vectors": vectors})
    assert refused.value.param == "vectors"


def test_a_number_in_json_is_the_label_that_a_form_would_write(card):
    """Classes of many data sets are numbers, 0 among them."""
    numbered = dataclasses.replace(card, labels=("0", "3"))
    assert order_of(numbered, {"label": 0}).label == order_of(numbered, {"prompt": 0}).label == "0"
    assert order_of(numbered, {"label": 3, "seed": 1}) == order_of(numbered, {"label": "3", "seed": 1})


def test_the_shortest_length_may_be_written_as_the_message_writes_it(card):
    fast = dataclasses.replace(card, geometry=dataclasses.replace(card.geometry, fps=30))
    assert order_of(fast, {"seconds": 0.0333333}).num_frames == 1
    for seconds in (0.0333, "0.02"):
        with pytest.raises(ApiError, match="expected 0.0333333 to 0.133333"):
            order_of(fast, {"seconds": seconds})


def test_texts_of_a_form_are_numbers(card):
    order = order_of(
        card,
        {
            "seed": "7",
            "steps": "5",
            "guidance_scale": "2.5",
            "audio_guidance_scale": "4",
            "seconds": "0.8",
            "size": "32x32",
            "model": "tiny",
            "num_windows": "1",
        },
    )
    assert (order.seed, order.steps) == (7, 5)
    assert (order.guidance_scale, order.audio_guidance_scale) == (2.5, 4)


def test_the_whole_range_of_seeds_is_taken(card):
    assert order_of(card, {"seed": 0}).seed == 0 and order_of(card, {"seed": 2**53 - 1}).seed == 2**53 - 1


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"stepz": 3}, "stepz", "did you mean steps?"),
        ({"__proto__": 3}, "__proto__", "expected some of prompt"),
        ({"prompt": "thunder"}, "prompt", "expected one of rain, speech"),
        ({"label": "thunder"}, "label", "expected one of rain, speech"),
        ({"prompt": "rain", "label": "speech"}, "prompt", "disagree"),
        ({"prompt": 3}, "prompt", "'3' is no label of tiny; expected one of rain, speech"),
        ({"label": 3}, "label", "'3' is no label of tiny; expected one of rain, speech"),
        ({"label": 3.0}, "label", 'expected a text, such as "3"'),
        ({"label": True}, "label", "expected a text"),
        ({"prompt": "x" * 1001}, "prompt", "1000"),
        ({"model": "sora-2"}, "model", "expected tiny"),
        ({"seconds": "4"}, "seconds", "seconds='4': expected 0.2 to 0.8 for task=joint, since this model"),
        ({"seconds": "soon"}, "seconds", "expected 0.2 to 0.8"),
        ({"seconds": "nan"}, "seconds", "expected 0.2 to 0.8"),
        ({"seconds": "inf"}, "seconds", "expected 0.2 to 0.8"),
        ({"seconds": 1e308}, "seconds", "expected 0.2 to 0.8"),
        ({"seconds": 0}, "seconds", "expected 0.2 to 0.8"),
        ({"size": "1280x720"}, "size", "this model makes 32x32"),
        ({"task": "i2av"}, "task", "joint, a2v, v2a (this model was not trained for it)"),
        ({"task": "independent"}, "task", "expected one of joint, a2v, v2a"),
        ({"task": "a2v"}, "input_reference", "a file with sound"),
        ({"task": "v2a"}, "input_reference", "a file with pictures"),
        ({"num_windows": 2}, "num_windows", "expected 1"),
        ({"span": [0.2, 0.4]}, "span", "task='joint' takes none"),
        ({"span": "soon"}, "span", "span="),
        ({"stream": "audio"}, "stream", "task=joint has no span"),
        ({"stream": "sound"}, "stream", "'both', 'video' or 'audio'"),
        ({"seed": -1}, "seed", "expected 0 to 9007199254740991"),
        ({"seed": 2**53}, "seed", "expected 0 to"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"seed": True}, "seed", "expected a number"),
        ({"seed": 10**400}, "seed", "seed="),
        ({"steps": 0}, "steps", "expected 1 to 50"),
        ({"steps": 51}, "steps", "expected 1 to 50"),
        ({"steps": [3]}, "steps", "steps=[3]"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "finite"),
        ({"guidance_scale": 31}, "guidance_scale", "expected 0 to 30"),
        ({"audio_guidance_scale": 31}, "audio_guidance_scale", "expected 0 to 30"),
        ({"guidance_scale": "strong"}, "guidance_scale", "number"),
        ({"input_reference": "https://example.org/a.wav"}, "input_reference", "input_reference="),
        ({"input_reference": {"file_id": "file_1"}}, "input_reference", "input_reference="),
    ],
)
def test_mistakes_name_their_field(card, fields, param, said):
    with pytest.raises(ApiError) as caught:
        order_of(card, fields)
    error = caught.value
    assert (
        error.status in (400, 404)
        and error.param == param
        and said in error.message
        and len(error.message) < 500
    )
    assert set(error.to_json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "i2av"},
        {"task": "continue", "num_windows": "3"},
        {"task": "inpaint", "span": "0.2, 0.4", "stream": "audio"},
        {"task": "inpaint", "span": [0.2, 0.4]},
    ],
)
def test_masked_tasks_are_had_from_a_model_that_was_trained_for_them(masked_card, fields):
    order = order_of(masked_card, fields, has_reference=True)
    assert order.task == fields["task"] and order.num_windows == int(fields.get("num_windows", 1))
    assert order.span == ((0.2, 0.4) if "span" in fields else None)
    assert order.stream == fields.get("stream", "both")


def test_a_length_is_a_number_of_frames(card, masked_card):
    """The model makes five frames a second. Five windows of four frames make at most twelve frames."""
    assert order_of(card, {}).num_frames is None and order_of(card, {"seconds": ""}).num_frames is None
    assert order_of(card, {"seconds": "0.8"}).num_frames == 4
    for seconds, frames in ((0.2, 1), ("1.8", 9), (2.4, 12), ("2.49", 12)):
        assert order_of(masked_card, {"seconds": seconds}).num_frames == frames
    limits = masked_card.to_json()["max_seconds"]
    assert limits["joint"] == limits["a2v"] == limits["i2av"] == 2.4
    assert (limits["inpaint"], limits["continue"]) == (0.8, 6.0)  # 4 s that are given go on by 2 s
    assert set(card.to_json()["max_seconds"].values()) == {0.8}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"task": "continue", "num_windows": 0}, "num_windows", "expected 1 to 5"),
        ({"task": "continue", "num_windows": 6}, "num_windows", "expected 1 to 5"),
        ({"task": "i2av", "num_windows": 2}, "num_windows", "expected 1, or task=continue"),
        ({"task": "i2av", "seconds": "2.6"}, "seconds", "seconds='2.6': expected 0.2 to 2.4 for task=i2av"),
        ({"task": "v2a", "seconds": 2.5001}, "seconds", "expected 0.2 to 2.4"),
        ({"task": "continue", "seconds": 6.2}, "seconds", "expected 0.2 to 6 for task=continue"),
        ({"task": "continue", "seconds": 2, "num_windows": 2}, "seconds", "expected only one of them"),
        ({"task": "inpaint", "span": [0.2, 0.4], "seconds": 1}, "seconds", "makes no longer clips by it"),
        ({"task": "inpaint"}, "span", "needs span"),
        (
            {"task": "inpaint", "span": [0.4, 0.2]},
            "span",
            "begin and end in seconds within the 0.8 s",
        ),
        ({"task": "inpaint", "span": [0, 0.8]}, "span", "leaves nothing of the clip"),
        ({"task": "inpaint", "span": "0,0.8", "stream": "video"}, "span", "or task='a2v'"),
        ({"task": "inpaint", "span": [0.1, 0.7], "stream": "audio"}, "span", "or task='v2a'"),
        ({"task": "inpaint", "span": [0.4, 0.40000001]}, "span", "touches no frame: frames last 0.2 s"),
        ({"task": "inpaint", "span": "0.2"}, "span", "span="),
        ({"task": "inpaint", "span": [True, 1]}, "span", "span="),
    ],
)
def test_mistakes_of_masked_tasks_name_their_field(masked_card, fields, param, said):
    with pytest.raises(ApiError) as caught:
        order_of(masked_card, fields, has_reference=True)
    assert (caught.value.status, caught.value.param) == (400, param) and said in caught.value.message
    assert len(caught.value.message) < 500


def test_a_masked_task_needs_a_file(masked_card):
    for task, what in {"i2av": "an image", "continue": "a clip", "inpaint": "a clip"}.items():
        with pytest.raises(ApiError, match=f"task={task} needs {what}"):
            order_of(masked_card, {"task": task, "span": [0.2, 0.4] if task == "inpaint" else None})


def test_a_file_for_a_task_without_one_is_refused(card):
    with pytest.raises(ApiError, match="takes no input_reference"):
        order_of(card, {}, has_reference=True)


def test_long_values_are_cut_in_messages():
    assert len(shown("x" * 10_000)) == 60


@pytest.mark.parametrize(("shift", "most"), [((), 60), (("generate.schedule_shift=5",), 12)])
def test_a_request_may_ask_for_as_many_steps_as_ddpm_has(tmp_path, shift, most):
    words = "diffusion.objective=ddpm", "diffusion.ddpm_steps=60", "generate.steps=40", *shift
    checkpoint = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config(*words)), kind="stdit")
    card = ModelCard.of(checkpoint, ServeSettings())
    assert (card.steps, card.to_json()["steps"]["max"]) == (min(40, most), most)
    assert ModelCard.of(checkpoint, ServeSettings(max_steps=10)).to_json()["steps"]["max"] == 10
    with pytest.raises(ApiError, match=f"steps={most + 1}: expected 1 to {most}"):
        order_of(card, {"steps": most + 1})
    with pytest.raises(UserError, match=f"cannot be served: generate.steps=61.* generate.steps={most}"):
        ModelCard.of(checkpoint, ServeSettings(steps=61))


def test_a_shift_of_a_request_bounds_the_steps_of_ddpm(tmp_path):
    words = "diffusion.objective=ddpm", "diffusion.ddpm_steps=60", "generate.steps=40"
    checkpoint = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config(*words)), kind="stdit")
    card = ModelCard.of(checkpoint, ServeSettings())
    assert order_of(card, {"schedule_shift": 5, "steps": 12}).num_calls == 12
    for fields, given in (({"steps": 13}, "13"), ({}, "40 .the default.")):
        with pytest.raises(ApiError, match=f"^steps={given} with .* schedule_shift=5: expected 1 to 12$"):
            order_of(card, {"schedule_shift": 5, **fields})
    with pytest.raises(ApiError, match="solver='euler': expected one of dpmpp_2m, ddim .this model takes no"):
        order_of(card, {"solver": "euler"})


def test_defaults_count_calls_of_the_model_too(tmp_path):
    path = save_tiny_stdit(str(tmp_path), tiny_config("generate.solver=heun", "generate.steps=30"))
    checkpoint = load_checkpoint(path, kind="stdit")
    card = ModelCard.of(checkpoint, ServeSettings(max_steps=50))
    assert (card.steps, order_of(card, {}).num_calls) == (25, 49)
    assert order_of(card, {"solver": "euler", "steps": 50}).num_calls == 50
    said = "steps=26 with solver=heun needs 51 calls .* max_steps=50 .*; write steps=25 or max_steps=51"
    with pytest.raises(UserError, match=said):
        ModelCard.of(checkpoint, ServeSettings(max_steps=50, steps=26))
    assert ModelCard.of(checkpoint, ServeSettings(max_steps=51, steps=26)).steps == 26
    with pytest.raises(UserError, match="write steps=500. What this server"):  # 1001 calls are never allowed
        ModelCard.of(checkpoint, ServeSettings(max_steps=1000, steps=501))


def test_a_default_that_only_the_times_of_ddpm_forbid_says_so(tmp_path):
    """Rounding leaves room for a step more than a request may ask for."""
    words = ("diffusion.objective=ddpm", "diffusion.ddpm_steps=100", "generate.schedule_shift=1.7")
    checkpoint = load_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config(*words)), kind="stdit")
    assert ModelCard.of(checkpoint, ServeSettings(steps=59)).steps == 59
    with pytest.raises(UserError, match="steps=60 with schedule_shift=1.7: the 100 times .*write steps=59"):
        ModelCard.of(checkpoint, ServeSettings(steps=60))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate.solver=hune"], "solver=hune is unknown"),
        (["generate.solver=heun", "diffusion.objective=ddpm"], "heun does not follow .* dpmpp_2m, ddim"),
        (["generate.guidance_interval=[0.8,0.2]"], "expected two times"),
    ],
)
def test_a_model_whose_every_job_would_fail_is_not_served(tmp_path, words, said):
    path = save_tiny_stdit(str(tmp_path), tiny_config(*words))
    with pytest.raises(
        StartError, match=f"cannot be served: .*{said}.*`config.generate` of its checkpoint.json"
    ):
        build({"checkpoint": path, "jobs_dir": str(tmp_path / "jobs")})


def test_texts_are_those_of_a_listing_without_spaces_around_them_and_none_if_empty(card):
    told = dataclasses.replace(card, vectors={"caption": (2,), "title": (2,)}, encoders=("caption", "title"))
    assert order_of(told, {"vectors": {"caption": " a glass ", "title": " "}}).texts == {"caption": "a glass"}
