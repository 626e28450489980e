"""All mutants, in one list."""

from __future__ import annotations

from dpvae.audit.mutants import clipping, doors, noise, program, sampling
from dpvae.audit.mutants.base import Mutant

CATALOGUE: tuple[Mutant, ...] = (*noise.MUTANTS, *clipping.MUTANTS, *sampling.MUTANTS, *program.MUTANTS,
                                 *doors.MUTANTS)
