"""What the trainer is made of: building, a step, checkpoints, logs."""
