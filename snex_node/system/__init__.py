"""What a node needs of the system and the event loop it runs on."""
