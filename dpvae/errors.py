"""Every error dpvae raises on purpose; each is also the built-in a caller would expect to catch.

    DPVAEError
    |-- ConfigError      (ValueError)       a knob, an override or a plan that makes no sense
    |-- SchemaError      (ValueError)       a schema that does not parse, or does not match the table
    |-- DataError        (ValueError)       a table that cannot be read, or holds what it must not
    |-- BudgetError      (RuntimeError)     a spend over the cap: refused before any noise is drawn
    |-- AccountingError  (ArithmeticError)  accountants that disagree: nothing may be certified
    |-- LedgerError      (RuntimeError)     a ledger that cannot be reached, or whose chain is broken
    |-- RunError         (ValueError)       a folder that is not a run, or cannot be resumed
    `-- ReleaseError     (ValueError)       a release folder that does not hold what it claims

A message names the value, what was expected, and what to do:

>>> raise ConfigError("privacy.epsilon=-1: expected a number > 0; try privacy.epsilon=1")
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: privacy.epsilon=-1: expected a number > 0; try privacy.epsilon=1

Messages may quote private cells (a value outside its declared bounds, say). They are for the
operator's eyes: nothing in dpvae writes one into a run's public folder or into a release.
"""


class DPVAEError(Exception):
    """Base of all deliberate errors; the command line prints it in one line and exits with 2."""


class ConfigError(DPVAEError, ValueError):
    """A knob, an override or a plan that makes no sense."""


class SchemaError(DPVAEError, ValueError):
    """A schema that does not parse, or does not match the table it is said to describe."""


class DataError(DPVAEError, ValueError):
    """A table that cannot be read, or that holds what it must not."""


class BudgetError(DPVAEError, RuntimeError):
    """A spend over the cap; nothing was spent."""


class AccountingError(DPVAEError, ArithmeticError):
    """Accountants that disagree, or a mechanism none of them can price; nothing may be certified."""


class LedgerError(DPVAEError, RuntimeError):
    """A ledger that cannot be reached, or whose hash chain is broken."""


class RunError(DPVAEError, ValueError):
    """A folder that is not a run, or a run that cannot go on."""


class ReleaseError(DPVAEError, ValueError):
    """A release folder that does not hold what it claims."""
