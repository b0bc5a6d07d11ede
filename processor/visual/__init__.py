"""What a run ranked, to look at: the lists, the charts beside them, and the page that holds them."""
