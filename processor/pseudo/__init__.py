"""Pictures without identities: clusters of them, and what is reported about these."""
