"""Training, inference and the pipeline: where the other rooms meet."""
