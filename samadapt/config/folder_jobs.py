"""Keys of the commands that do a folder of images: as jobs of a cluster, or a part of it alone."""

from __future__ import annotations

from dataclasses import field

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.launcher import JobLauncher
from samadapt.errors import ConfigError
from samadapt.system.settings import Settings, Whole


@dataclass(frozen=True)
class FolderJobs(Settings):
    """Where a folder is done, and which part of it."""

    launcher: JobLauncher = field(default_factory=JobLauncher)
    only_part: Whole | None = Field(
        default=None,
        ge=0,
        description="of a folder, do every parts-th image alone, counted from this one; for the "
        "job arrays of other schedulers; null: all images",
    )
    parts: Whole | None = Field(
        default=None, ge=1, description="for only_part: number of parts, the same for all of them"
    )
    overwrite: bool = Field(
        default=False, description="for a folder: do all images anew, instead of continuing"
    )

    def check_part(self) -> None:
        """Refuse keys of a part that do not fit together.

        Raises:
            ConfigError: naming the keys.
        """
        if self.only_part is None and self.parts is None:
            return
        if self.only_part is None or self.parts is None:
            lacking = "parts=N" if self.parts is None else "only_part=K, from 0 to parts - 1,"
            raise ConfigError(
                f"only_part=K parts=N does one of N parts of a folder: {lacking} is missing"
            )
        if self.only_part >= self.parts:
            raise ConfigError(
                f"only_part={self.only_part}: expected 0 to {self.parts - 1}, because "
                f"parts={self.parts}"
            )
        if self.overwrite:
            raise ConfigError(
                "overwrite=true would remove what other parts have written; remove the output "
                "before the parts start, and leave overwrite out"
            )
        if self.launcher.name is not None:
            raise ConfigError(
                f"only_part is what the jobs of an array get; leave it out with "
                f"launcher={self.launcher.name}, and give launcher.jobs"
            )
