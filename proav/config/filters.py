"""Settings of which prepared segments are used: thresholds on the scores that every segment carries; all are off until they are set."""

from typing import Annotated, Literal

from pydantic import Field

from proav.config.section import Probability, Section


class FilterConfig(Section):
    """Which segments training, encoding and evaluation draw from. What is left out stays stored and is counted by reason: switching filters decodes nothing again."""

    changes = ("windows",)

    min_rms_db: Annotated[float, Field(ge=-200, le=0)] | None = None
    """Leaves out sound below this root mean square, dB of full scale (reason `silent`, or `cancelled` if
    channels cancel in the mix); -60 is silence.
    """
    max_clipped: Probability | None = None
    """Leaves out sound with more than this share of its samples at full scale (reason `clipped`)."""
    max_black: Probability | None = None
    """Leaves out segments with more than this share of black pictures (reason `black`)."""
    max_frozen: Probability | None = None
    """Leaves out segments whose picture stands still in more than this share of its steps (reason `frozen`)."""
    avoid_shot_cuts: bool = False
    """Windows never cross a shot cut; a segment without one shot of clip.num_frames frames is left out (reason `shot_cuts`)."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """exact: of segments with the same bytes the first is used (`duplicate`). near: also of those that look and sound alike (`near_duplicate`)."""
    min_sync: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Leaves out segments whose synchrony of sound and picture is below this, or undefined (reason `out_of_sync`)."""
