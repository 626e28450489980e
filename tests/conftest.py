"""Settings of the whole suite: a busy machine is not a failure, and neither is a shell that ignores Ctrl-C."""

import signal
import threading

from hypothesis import settings

settings.register_profile("dpvae", deadline=None, print_blob=True)
settings.load_profile("dpvae")

# A job in the background of a script starts with Ctrl-C ignored, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
