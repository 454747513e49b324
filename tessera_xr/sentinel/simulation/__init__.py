"""The parts of a simulated landscape; `tessera_xr.sentinel.simulate` is the door."""
