"""Generic helpers; imports nothing else of this project."""
import os

# Read by libgomp when torch is first imported. By default its threads spin long while they wait for each other, and on
# a CPU that another process also uses that is most of the time: 10 images/s in training against 100 with 5000. Of two
# trainings on two cores each has 0.25 of its speed alone with 5000, 0.30 with 2500, which costs nothing alone, and 0.48
# with 1000, which costs an eighth; OMP_NUM_THREADS=1 for each gives 0.67 (docs/training.md).
os.environ.setdefault("GOMP_SPINCOUNT", "2500")
