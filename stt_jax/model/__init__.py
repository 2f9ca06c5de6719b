"""Events in, item scores out: pure Flax modules."""
