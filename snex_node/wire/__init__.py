"""Bytes: terms, control messages, frames and handshakes. No I/O: bytes go in, events come out."""
