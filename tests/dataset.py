"""Draw a seeded share of data set v5 again and compare its hashes; `make verify-data` rebuilds v3 and v5 whole.

python tests/dataset.py
"""

from pocketguide.data import main

if __name__ == "__main__":
    main(["--verify", "v5", "--share", "0.01"])
