"""What a person types: the Click group, configuration and presets, run directories, progress."""
