"""What all tests share."""

import signal

# Whoever starts the tests in the background of a shell has them ignore Ctrl-C, and so would every command that they try.
signal.signal(signal.SIGINT, signal.default_int_handler)
