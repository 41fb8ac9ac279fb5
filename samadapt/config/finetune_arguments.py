"""The keys of ``samadapt finetune``: those of a run, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings, resolved, stored_values
from samadapt.config.launcher import JobLauncher
from samadapt.config.schema import Config
from samadapt.errors import ConfigError
from samadapt.system.settings import Whole


@dataclass(frozen=True)
class FinetuneArguments(Config):
    """The keys of ``samadapt finetune``: those of a run, and where it runs."""

    launcher: JobLauncher = field(default_factory=JobLauncher)
    only_fold: Whole | None = Field(
        default=None,
        ge=0,
        description="of a resumed cross-validation, train this fold alone; null: all that lack",
    )

    def configuration(self) -> Config:
        """Return the keys that the result depends on, which a run directory stores.

        Raises:
            ConfigError: ``only_fold`` names no fold of a resumed cross-validation.
        """
        config = Config(**{item.name: getattr(self, item.name) for item in fields(Config)})
        if self.only_fold is None:
            return resolved(config)
        if config.folds is None or config.resume is None:
            raise ConfigError(
                f"only_fold={self.only_fold} trains one fold of a cross-validation that was begun; "
                "name its directory with resume=RUN_DIR"
            )
        if self.only_fold >= config.folds:
            raise ConfigError(
                f"only_fold={self.only_fold}: expected 0 to {config.folds - 1}, because "
                f"folds={config.folds}"
            )
        return resolved(config)


def finetune_arguments(arguments: Sequence[str]) -> FinetuneArguments:
    """Return the keys of a command line that names ``recipe=`` or ``resume=``.

    Raises:
        ConfigError: as ``compose.from_arguments``.
    """
    path, base, others = stored_values(arguments)
    return parse_settings(FinetuneArguments, others, base, origin=str(path))
