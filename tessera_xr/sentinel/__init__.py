"""What goes in: Sentinel bands, cubes, tiles, and simulated landscapes."""
