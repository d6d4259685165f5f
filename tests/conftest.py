"""What all tests share."""

import signal

# Started in the background of a shell, tests ignore Ctrl-C, and so would every command that they try.
signal.signal(signal.SIGINT, signal.default_int_handler)
