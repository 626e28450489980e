"""Settings of the whole suite: a busy machine is not a failure."""

from hypothesis import settings

settings.register_profile("dpvae", deadline=None, print_blob=True)
settings.load_profile("dpvae")
