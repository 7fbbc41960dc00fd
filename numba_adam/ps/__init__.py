"""What both ends of the parameter server share: generated messages, framing, checksums, the error table."""
