"""Any error as an exit code and one line that names the value and the remedy.

>>> explain(ValueError("oh"), "")[0]
70
>>> explain(OSError(errno.ENOSPC, "No space left on device", "runs/a"), "")
(2, 'error: No space left on device: runs/a; free some space and run the same command again')
"""

from __future__ import annotations

import errno
import re

from dpvae.checks import did_you_mean
from dpvae.errors import DPVAEError

MISTAKE, BUG = 2, 70
LONGEST = 80  # characters of a file's name that are shown
_NO_MEMORY = ("can't allocate memory", "out of memory")  # how torch tells it
_LABELS = ("data.label", "data.labels")  # knobs of images as well as of texts
_REMEDIES = {
    errno.ENOSPC: "; free some space and run the same command again",
    errno.EDQUOT: "; free some space and run the same command again",
    errno.EACCES: "; choose a place you may use",
    errno.EPERM: "; choose a place you may use",
    errno.EROFS: "; choose a place you may write to",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.ENOTDIR: "; a part of that path is a file, choose another place",
}


def explain(error: BaseException, memory: str) -> tuple[int, str]:
    """The exit code and the line for ``error``; ``memory`` is what to do where there is too little of it."""
    if isinstance(error, DPVAEError):
        return MISTAKE, f"error: {error}"
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        return MISTAKE, f"error: {_hydra(error)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and
                                          any(text in str(error) for text in _NO_MEMORY)):
        return MISTAKE, f"error: out of memory; {memory}"
    if isinstance(error, OSError):
        name = str(error.filename or "")
        where = f": {name if len(name) <= LONGEST else name[:LONGEST] + '...'}" if name else ""
        return MISTAKE, f"error: {error.strerror or error}{where}{_REMEDIES.get(error.errno or 0, '')}"
    return BUG, (f"bug: {type(error).__name__}: {error}; this is a mistake in dpvae, not in your input: "
                 "DPVAE_DEBUG=1 shows where")


def _hydra(error: BaseException) -> str:
    """Hydra's and OmegaConf's own complaints, with what to type instead."""
    missing, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if missing and options is not None:
        group, _, name = str(missing).rpartition("/")
        file = f"; a file is named with its ending or as ./{name}" if group == "data" else ""
        hint = did_you_mean(name, options)
        return f"{group}={name}: expected one of {', '.join(options)}{hint}{file}"
    text = str(error).strip() or str(error.__cause__ or type(error).__name__).strip()
    if several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return f"{several[1]}: expected one value; add -m for one run per value"
    if override := getattr(error, "override", None):
        return f"{override}: a value that cannot be read; expected a number, a word or a quoted text"
    if other := re.match(r"Could not override '(data\.\w+)'", text):
        kinds = "data=text or data=images" if other[1] in _LABELS else "data=text"
        return f"{other[1]}: expected together with {kinds}, whose knob it is"
    if text.startswith("Missing mandatory value") and (key := getattr(error, "full_key", None)):
        return f"{key}: expected a value; say {key}=..."
    return text.splitlines()[0]
