"""Settings that choose which prepared segments are used: thresholds on the scores of every segment.

All filters are off until they are set.
"""

from typing import Annotated, Literal

from pydantic import Field

from proav.config.section import Probability, Section


class FilterConfig(Section):
    """Which segments training, encoding and evaluation draw from.

    Segments that are left out stay stored and are counted by reason. Changed filters need no decoding.
    """

    changes = ("windows",)

    min_rms_db: Annotated[float, Field(ge=-200, le=0)] | None = None
    """Leaves out segments whose sound has a root mean square below this, in dB of full scale; -60 is silence
    (reason `silent`, or `cancelled` if channels cancel in the mix).
    """
    max_clipped: Probability | None = None
    """Leaves out segments with more than this share of sound samples at full scale (reason `clipped`)."""
    max_black: Probability | None = None
    """Leaves out segments with more than this share of black pictures (reason `black`)."""
    max_frozen: Probability | None = None
    """Leaves out segments if more than this share of the steps between pictures change nothing (reason
    `frozen`).
    """
    avoid_shot_cuts: bool = False
    """Windows never cross a shot cut. A segment without any shot of clip.num_frames frames is left out
    (reason `shot_cuts`).
    """
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: of segments with the same bytes only the first is used (reason `duplicate`). near: also only the
    first of segments that look and sound alike (reason `near_duplicate`).
    """
    min_sync: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Leaves out segments whose synchrony of sound and picture is below this or undefined (reason
    `out_of_sync`).
    """
