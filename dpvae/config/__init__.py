"""Every knob, as frozen dataclasses that check themselves.

Two kinds are kept apart so that a reviewer sees at once which one a change touches: :class:`PrivacyConfig`
changes the guarantee, :class:`PerformanceConfig` only speed and memory. Hydra composes YAML into a mapping;
:func:`build` turns it into these objects once, and nothing below the command line knows Hydra exists.

>>> build(PrivacyConfig, {"epsilon": 1.0}).epsilon
1.0
>>> build(PrivacyConfig, {"epsilom": 1.0})
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: privacy.epsilom: no such key; did you mean 'epsilon'?
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from dpvae import typed
from dpvae.config.limits import (
    CURATORS,
    DATA_KINDS,
    LONGEST_NAME,
    NEIGHBOURS,
    OUTSIDE,
    PROGRESS,
    RECORDS,
    SECTORS,
    TRACKERS,
    TRAINERS,
)
from dpvae.config.train import (
    DataConfig,
    LedgerConfig,
    ModelConfig,
    PerformanceConfig,
    PrivacyConfig,
    ReportConfig,
    RunConfig,
    SweepConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.config.verbs import (
    AuditConfig,
    CompareConfig,
    DoctorConfig,
    EvaluateConfig,
    ImputeConfig,
    InitConfig,
    LakeConfig,
    LedgerVerbConfig,
    PageConfig,
    RegistryConfig,
    ReleaseConfig,
    SampleConfig,
    ScoreConfig,
    VerbConfig,
    VerifyConfig,
)

T = TypeVar("T")
__all__ = [
    "CURATORS", "DATA_KINDS", "LONGEST_NAME", "NEIGHBOURS", "OUTSIDE", "PROGRESS", "RECORDS", "SECTORS", "TRACKERS",
    "TRAINERS", "AuditConfig", "CompareConfig", "DataConfig", "DoctorConfig", "EvaluateConfig", "ImputeConfig",
    "InitConfig", "LakeConfig", "LedgerConfig", "LedgerVerbConfig", "ModelConfig", "PageConfig",
    "PerformanceConfig", "PrivacyConfig", "RegistryConfig", "ReleaseConfig", "ReportConfig", "RunConfig",
    "SampleConfig", "ScoreConfig", "SweepConfig", "TrainConfig", "TrainerConfig", "VerbConfig", "VerifyConfig", "build",
]


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str | None = None) -> T:
    """A frozen ``cls`` from nested mappings; unknown keys and wrong types raise :class:`ConfigError`."""
    if where is None:
        where = cls.__name__.removesuffix("Config").lower() if cls not in typing.get_args(VerbConfig) else ""
    return typed.build(cls, mapping, where)

