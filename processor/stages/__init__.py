"""The stages of a pipeline: what each depends on, what is known of earlier runs, and whether it is run again."""
