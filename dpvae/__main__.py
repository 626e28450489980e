"""``python -m dpvae`` is the ``dpvae`` command."""

from dpvae.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
