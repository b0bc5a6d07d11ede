"""People who are kept out of training and measured on."""
