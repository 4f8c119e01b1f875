"""Protocols: how a number is measured, as named presets. Only numbers of the same protocol can be compared.

A protocol says which clips are used, at what size and rates, which distances are computed with which network,
and what is measured for each clip. Presets with a paper's name repeat its released evaluation as far as proav
can; `docs/evaluation.md` lists the differences. `proav/evaluate` runs a protocol.
"""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from proav.errors import UserError
from proav.metrics.world import WORLD_SCORES

SURROGATES = ("surrogate-video", "surrogate-audio")
"""Networks of fixed random weights. They need no file. Their Fréchet and kernel distances have own names."""


@dataclass(frozen=True)
class Distance:
    """A distance between two sets of clips in the feature space of one network."""

    name: str
    """The printed name. A name that is established in the field is used only in its established meaning."""
    kind: Literal[
        "frechet", "kernel", "precision_recall", "density_coverage", "diversity", "nearest_training"
    ]
    network: str
    scale: float = 1.0
    """The printed number is the distance times this."""


@dataclass(frozen=True)
class FeatureScore:
    """A score of single clips from networks' features (`proav/metrics/agreement.py`), printed as its mean."""

    name: str
    kind: Literal["agreement", "offset", "class", "class_divergence"]
    """class_divergence applies only to clips with counterparts, such as reconstructions."""
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """Which clips are measured, at what size and rates, and how. None stands for the model's own value."""

    name: str
    about: str
    distances: tuple[Distance, ...]
    scores: tuple[str, ...]
    """What is measured for each clip: see `proav/evaluate/scores.py`."""
    feature_scores: tuple[FeatureScore, ...] = ()
    num_frames: int | None = None
    fps: int | None = None
    size: int | None = None
    """Frames are resized to this many rows and columns before anything is measured."""
    sample_rate: int | None = None
    num_clips: int | None = None
    """The exact number of generated clips, and of the real clips beside them; fewer are refused.

    None: as many as there are, up to evaluate.max_clips. A result that needs more clips then says so.
    Reconstructions and their originals are as many as there are, up to evaluate.max_clips, in every protocol.
    """
    real_split: Literal["train", "validation"] = "train"
    """Split of the data that a run's samples are compared with."""

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @property
    def networks(self) -> tuple[str, ...]:
        """Every network that distances and scores need, each once."""
        of_scores = (name for score in self.feature_scores for name in score.networks)
        return tuple(dict.fromkeys([*(distance.network for distance in self.distances), *of_scores]))


def _surrogates() -> tuple[Distance, ...]:
    return (
        Distance("sKVD", "kernel", "surrogate-video"),
        Distance("sFVD", "frechet", "surrogate-video"),
        Distance("sKAD", "kernel", "surrogate-audio"),
        Distance("sFAD", "frechet", "surrogate-audio"),
    )


_I3D = (Distance("FVD", "frechet", "i3d-kinetics400"), Distance("KVD", "kernel", "i3d-kinetics400"))
_AUDIOCLIP = (Distance("FAD", "frechet", "audioclip", scale=1e4),)
_OF_CLIPS = (
    "psnr_db",
    "psnr_mean_colour_db",
    "psnr_temporal_mean_db",
    "psnr_linear_planes_db",
    "psnr_cosine_db",
    "ssim",
    "lpips",
    "blockiness",
    "mel_error_db",
    "mel_error_mean_mel_db",
    "mel_error_linear_planes_db",
    "mel_error_cosine_db",
    "blockiness_sound",
    "av_align_one_to_one",
    "av_align",
    "synchrony",
)
_OF_FEATURES = (
    FeatureScore("KL-I3D", "class_divergence", ("i3d-kinetics400",)),
    FeatureScore("AV-IB", "agreement", ("imagebind-video", "imagebind-audio")),
    FeatureScore("DeSync", "offset", ("synchformer",)),
    FeatureScore("label_accuracy", "class", ("classifier",)),
)
_OF_SETS = (
    Distance("precision_recall", "precision_recall", "i3d-kinetics400"),
    Distance("density_coverage", "density_coverage", "i3d-kinetics400"),
    Distance("diversity", "diversity", "i3d-kinetics400"),
    Distance("nearest_training", "nearest_training", "i3d-kinetics400"),
)

_MM_DIFFUSION_64 = Protocol(
    "mm-diffusion-64",
    "MM-Diffusion's released evaluation: 2,048 clips of 16 frames at 10 fps against the training split, "
    "frames brought to 64x64 first",
    distances=(*_I3D, *_AUDIOCLIP),
    scores=(),
    num_frames=16,
    fps=10,
    size=64,
    sample_rate=16_000,
    num_clips=2048,
)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "small",
            "for the demo and for ablations on few clips: kernel distances are unbiased at any number of "
            "clips; networks of random weights need no file",
            distances=(
                *_surrogates(),
                *_I3D,
                Distance("diversity", "diversity", "surrogate-video"),
                Distance("nearest_training", "nearest_training", "surrogate-video"),
            ),
            scores=_OF_CLIPS,
        ),
        Protocol(
            "full",
            "everything that can be measured on the model's own clips: with I3D and YAMNet, and more with "
            "networks that the user brings",
            distances=(
                *_I3D,
                Distance("FAD-YAMNet", "frechet", "yamnet"),
                Distance("KAD-YAMNet", "kernel", "yamnet"),
                *_OF_SETS,
            ),
            scores=_OF_CLIPS,
            feature_scores=_OF_FEATURES,
        ),
        _MM_DIFFUSION_64,
        dataclasses.replace(
            _MM_DIFFUSION_64,
            name="mm-diffusion-256",
            about="the same at 256x256, as tables of 256x256 models are made",
            size=256,
        ),
        Protocol(
            "pvdm",
            "PVDM's released evaluation: FVD of 2,048 clips of 16 frames of 256x256 against the training "
            "split, at the model's frame rate",
            distances=_I3D[:1],
            scores=(),
            num_frames=16,
            size=256,
            num_clips=2048,
        ),
        Protocol(
            "world",
            "for models of the made world (examples/world): whether what is seen is heard, when, and by the "
            "right object",
            distances=(),
            scores=WORLD_SCORES,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The preset of this name. Raises UserError for an unknown name, with the nearest known one."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"evaluate.protocol={name} is unknown; expected one of: {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def protocol_hash(record: dict) -> str:
    """12 hexadecimal digits of a record's SHA-256. Tables with equal hashes can be compared."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
