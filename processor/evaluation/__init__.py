"""From features to lists, metrics and answers, of one model or several; tuning and comparison of runs."""
