"""Broken programs, on purpose: an audit that cannot catch them may not sign.

Each mutant is the real program with one line of it replaced, as a person in a hurry might have written it: most of them
*were* written, in libraries that people use (``docs/decisions.md``, ``tests/regressions``). They are applied to the
code that runs, never to a copy, and undone when the context ends.
"""
