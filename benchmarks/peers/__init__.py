"""How each peer is run: in an environment of its own, taking turns with ours."""
