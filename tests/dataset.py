"""Draw a seeded share of data set v6 again and compare its hashes; `make verify-data` rebuilds v3 and v6 whole.

python tests/dataset.py
"""

from pocketguide.data import main

if __name__ == "__main__":
    main(["--verify", "v6", "--share", "0.01"])
