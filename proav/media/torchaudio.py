"""torchaudio through a shim.

torchaudio's published wheel links CUDA libraries, so a plain import fails with a CPU build of torch. Its
Python part needs none of them. Everything in proav that needs torchaudio imports it from here. Files are read
and written in `container.py`. Letters: B clips, L sound samples.
"""

import importlib
import sys
import types

import torch


def import_torchaudio() -> types.ModuleType:
    """The torchaudio module.

    If its compiled part cannot be loaded, this is the Python part alone, without forced_align, load and save.
    """
    try:
        return importlib.import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
            del sys.modules[name]
        extension = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = extension._IS_ALIGN_AVAILABLE = False
        extension.fail_if_no_align = _fail_if_no_align
        sys.modules["torchaudio._extension"] = extension
        return importlib.import_module("torchaudio")


def resample(waveform_BL: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Sound at another rate by windowed-sinc interpolation: [B, L] -> [B, ceil(L * to_rate / from_rate)].

    from_rate, to_rate: Hz.
    """
    if from_rate == to_rate:
        return waveform_BL
    return import_torchaudio().functional.resample(waveform_BL, from_rate, to_rate)


def _fail_if_no_align(function):
    def fail(*args, **kwargs):
        raise RuntimeError(
            f"torchaudio.functional.{function.__name__} needs torchaudio's compiled part, "
            "which this torch cannot load"
        )

    return fail
