"""Client and server: envelopes, keys, sessions, a loopback service."""
