"""A gallery that outlives a run: vectors with their pictures' facts, kept safely, searched exactly, told apart."""
