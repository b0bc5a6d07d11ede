"""Generic helpers; imports nothing else of this project."""
import os

# Read by OpenMP when torch is first imported. Its threads otherwise spin while they wait for each other, and on a CPU
# that another process also uses, that is most of the time: we measured 10 images/s instead of 175.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
