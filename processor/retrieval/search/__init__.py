"""The engine behind re_ranking and top_k: exact nearest neighbours in bounded memory."""
