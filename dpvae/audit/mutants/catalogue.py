"""All mutants, in one list."""

from __future__ import annotations

from dpvae.audit.mutants import booking, clipping, doors, noise, one_shot, pictures, published, sampling
from dpvae.audit.mutants.base import Mutant

CATALOGUE: tuple[Mutant, ...] = (*noise.MUTANTS, *clipping.MUTANTS, *sampling.MUTANTS, *published.MUTANTS,
                                 *booking.MUTANTS, *one_shot.MUTANTS, *doors.MUTANTS, *pictures.MUTANTS)
