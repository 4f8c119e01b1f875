"""The layout of a run, defined once: files and folders below run_dir, local or remote.

README and `docs/` describe this layout to users.
"""

from dataclasses import dataclass

from proav.config import Config
from proav.storage import join


@dataclass(frozen=True)
class StageFolder:
    """A stage that trains: its checkpoints and its curve."""

    path: str

    @property
    def checkpoints(self) -> str:
        """Folders clips-<clips>, and the file `latest`."""
        return join(self.path, "checkpoints")


class RunFolder:
    """The paths of one run. Nothing is opened, and nothing has to exist."""

    def __init__(self, config: Config) -> None:
        self.path, self.data = config.run_folder, config.data_folder

    def stage(self, name: str) -> StageFolder:
        """mdsa, stdit or distill."""
        return StageFolder(join(self.path, name))

    @property
    def mdsa(self) -> StageFolder:
        return self.stage("mdsa")

    @property
    def stdit(self) -> StageFolder:
        return self.stage("stdit")

    @property
    def config_file(self) -> str:
        """The resolved configuration, as the last job had it."""
        return join(self.path, "config.yaml")

    @property
    def data_manifest(self) -> str:
        """Exists once the data are complete."""
        return join(self.data, "manifest.json")

    @property
    def latents(self) -> str:
        return join(self.path, "latents")

    @property
    def latent_statistics(self) -> str:
        """Exists once the latents are complete."""
        return join(self.latents, "stats.json")

    @property
    def samples(self) -> str:
        return join(self.path, "samples")

    @property
    def evaluation(self) -> str:
        return join(self.path, "eval")

    @property
    def metrics(self) -> str:
        """The numbers of the last evaluation."""
        return join(self.evaluation, "metrics.json")

    @property
    def reconstructions(self) -> str:
        """Clips that the report shows."""
        return join(self.evaluation, "reconstructions")

    @property
    def of_ray(self) -> str:
        """Files that Ray Train keeps while it works."""
        return join(self.path, ".ray")
