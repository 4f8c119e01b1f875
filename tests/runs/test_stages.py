"""What the checkpoints of a stage say about themselves."""

from proav.generation.sampling_settings import SamplingSettings
from proav.runs.stages import STAGES
from tests.tiny import tiny_config


def test_a_flow_map_is_described_without_its_teachers_sampling_settings():
    words = "generate.schedule_shift=3", "generate.solver=heun", "generate.guidance_interval=[0.1,0.9]"
    teacher = tiny_config(*words)
    described = STAGES["distill"].described(teacher)
    assert described.diffusion.objective == "flow_map"
    assert SamplingSettings.from_config(described) == SamplingSettings()
    assert STAGES["stdit"].described(teacher) == teacher
