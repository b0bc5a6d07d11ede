"""Following people: a stream of tracklets gets identities, in memory or over a gallery."""
