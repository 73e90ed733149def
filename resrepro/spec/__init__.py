"""What a run is: its recipe, its experiment, and the catalogue of all of them, as data."""
