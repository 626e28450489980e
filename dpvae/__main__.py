"""``python -m dpvae`` is the ``dpvae`` command."""

import sys

if __name__ == "__main__":
    try:
        from dpvae.cli import main
    except KeyboardInterrupt:  # before there is anything that could listen
        print("dpvae: stopped: nothing was begun; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(main())
