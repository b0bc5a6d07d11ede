"""Generic helpers; imports nothing else of this project."""
import os

# Read by libgomp when torch is first imported. By default its threads spin long while they wait for each other, and on
# a CPU that another process also uses that is most of the time: 10 images/s in training against 100 with this value
# (and 280 against 280 on an idle CPU).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
