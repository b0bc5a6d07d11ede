"""The gallery over HTTP, with its page: what may be asked, who may ask, and answers that share one search."""
