"""The real controller under a virtual clock, with a fake cluster and seeded faults."""
