"""What every unit of work needs: the run, its networks, Prefect's caching, progress, turns on the device."""
