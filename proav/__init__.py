"""proav: train and serve models that make video with sound, on Ray.

Notebooks begin with `SoundingVideoPipeline`; jobs are in `ray_jobs/`. Importing proav loads nothing heavy:
each name is loaded when it is used.
"""

import importlib

__version__ = "0.1.0"
_HOMES = {
    "SoundingVideoPipeline": "proav.generation.pipeline",
    "Clip": "proav.media.container",
    "Config": "proav.config",
    "load_config": "proav.config.reading",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'proav' has no attribute {name!r}")
